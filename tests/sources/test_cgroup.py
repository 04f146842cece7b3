"""CPU throttling, read from trees that look like those of real machines and containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopscope.core.clock import Clock
from loopscope.core.page import Page, PageReader
from loopscope.sources.cgroup import METRICS, CgroupSource, candidate_places, parse_statistics

V2 = """usage_usec 5000000
user_usec 4000000
system_usec 1000000
nr_periods {periods}
nr_throttled {throttled}
throttled_usec 1500000
nr_bursts 0
burst_usec 0
"""
V2_WITHOUT_CONTROLLER = "usage_usec 5000000\nuser_usec 4000000\nsystem_usec 1000000\n"
V1 = "nr_periods {periods}\nnr_throttled {throttled}\nthrottled_time 1500000000\n"

V1_GROUPS = """12:pids:{path}
4:cpu,cpuacct:{path}
1:name=systemd:{path}
"""


@pytest.fixture
def page() -> Page:
    return Page.anonymous(Clock(), capacity=1 << 16)


def read(page: Page) -> list[float]:
    """The values in the page, in the order of ``METRICS``; empty where there are no series."""
    reader = PageReader()
    reader.update(page.view)
    values = {s.metric.name: page.slots[s.runs[0][0]] for s in reader.series}
    assert list(values) in ([], [metric.name for metric in METRICS])
    return list(values.values())


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root folder with ``/proc/self/cgroup`` and ``cpu.stat`` files below ``/sys/fs/cgroup``."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for place, text in files.items():
        put(root, place, text)
    return root


def put(root: Path, place: str, text: str) -> None:
    folder = root / "sys/fs/cgroup" / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.stat").write_text(text)


def text(template: str, periods: int, throttled: int) -> str:
    return template.format(periods=periods, throttled=throttled)


def figures(page: Page, root: Path) -> list[float]:
    CgroupSource(page, root).refresh()
    return read(page)


def test_version_2_is_read_where_the_process_lives(page: Page, tmp_path: Path) -> None:
    """The process' own group is read, not the root's; microseconds become seconds."""
    files = {"": text(V2, 1, 1), "app.slice/api.service": text(V2, 100, 20)}
    root = tree(tmp_path, "0::/app.slice/api.service\n", files)
    assert figures(page, root) == [100, 20, 1.5]


def test_version_1_is_read_where_the_process_lives(page: Page, tmp_path: Path) -> None:
    """The cpu controller's path counts, not another controller's; nanoseconds become seconds."""
    files = {"cpu,cpuacct/docker/ab12": text(V1, 100, 20), "cpu,cpuacct": text(V1, 1, 1)}
    root = tree(tmp_path, V1_GROUPS.format(path="/docker/ab12"), files)
    assert figures(page, root) == [100, 20, 1.5]


@pytest.mark.parametrize("line", ["3:cpuacct,cpu:/api", "3:cpu:/api", "3:cpu,cpuacct:/api"])
def test_version_1_mounts_by_any_name(page: Page, tmp_path: Path, line: str) -> None:
    """Whatever the kernel's order of controllers, a mount or link named cpu is found."""
    root = tree(tmp_path, f"{line}\n2:cpuset:/\n", {"cpu/api": text(V1, 100, 20)})
    assert figures(page, root) == [100, 20, 1.5]


def test_a_container_that_is_its_own_root(page: Page, tmp_path: Path) -> None:
    """With the path "/" the mount's root is the container's group."""
    root = tree(tmp_path, "0::/\n", {"": text(V2, 100, 20)})
    assert figures(page, root) == [100, 20, 1.5]


@pytest.mark.parametrize(
    ("groups", "place", "template"),
    [
        ("0::/kubepods.slice/pod1/ab12\n", "", V2),
        (V1_GROUPS.format(path="/kubepods/pod1/ab12"), "cpu,cpuacct", V1),
    ],
)
def test_a_path_that_is_not_visible_falls_back_to_the_mount(
    page: Page, tmp_path: Path, groups: str, place: str, template: str
) -> None:
    """A path of the host's, seen from within a container, leads to the container's own group."""
    root = tree(tmp_path, groups, {place: text(template, 100, 20)})
    assert figures(page, root) == [100, 20, 1.5]


def test_a_leaf_without_the_controller_is_accounted_for_further_up(
    page: Page, tmp_path: Path
) -> None:
    """Where a version 2 group counts usage only, its nearest parent that counts quotas speaks."""
    files = {
        "": V2_WITHOUT_CONTROLLER,
        "user.slice": text(V2, 1, 1),
        "user.slice/api": text(V2, 100, 20),
        "user.slice/api/workers": V2_WITHOUT_CONTROLLER,
    }
    root = tree(tmp_path, "0::/user.slice/api/workers\n", files)
    assert figures(page, root) == [100, 20, 1.5]


def test_a_foreign_group_of_the_same_parent_name_is_not_ours(page: Page, tmp_path: Path) -> None:
    """In version 1 a container's own "docker" folder is not taken for the host's."""
    files = {"cpu,cpuacct": text(V1, 100, 20), "cpu,cpuacct/docker": text(V1, 7, 7)}
    root = tree(tmp_path, V1_GROUPS.format(path="/docker/ab12"), files)
    assert figures(page, root) == [100, 20, 1.5]


def test_both_versions_side_by_side(page: Page, tmp_path: Path) -> None:
    """On a hybrid machine the version that accounts for CPU quotas is read."""
    groups = V1_GROUPS.format(path="/api") + "0::/api\n"
    files = {"unified/api": V2_WITHOUT_CONTROLLER, "cpu,cpuacct/api": text(V1, 100, 20)}
    assert figures(page, tree(tmp_path, groups, files)) == [100, 20, 1.5]


def test_a_group_outside_the_namespace_is_not_guessed_at(page: Page, tmp_path: Path) -> None:
    """A path that leads out of what is visible publishes nothing rather than another's figures."""
    root = tree(tmp_path, "0::/../other\n", {"": text(V2, 1, 1), "other": text(V2, 2, 2)})
    assert figures(page, root) == []


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("", {"": text(V2, 1, 1)}),
        ("0::/\n", {}),
        ("0::/\n", {"": V2_WITHOUT_CONTROLLER}),
        ("0::/\n", {"": "nr_periods many\nnr_throttled 0\nthrottled_usec 0\n"}),
        ("what is this", {}),
        ("2:cpuset:/\n1:cpuacct:/\n", {"cpuset": text(V1, 1, 1), "cpu": text(V1, 1, 1)}),
    ],
    ids=["no groups", "no mount", "no quota", "no number", "no sense", "no cpu controller"],
)
def test_where_there_is_nothing_to_read_there_is_no_series(
    page: Page, tmp_path: Path, groups: str, files: dict[str, str]
) -> None:
    """Without a quota to account for, the metrics are absent, not zero."""
    assert figures(page, tree(tmp_path, groups, files)) == []


def test_no_proc_at_all_is_no_failure(page: Page, tmp_path: Path) -> None:
    """On a system without /proc the source publishes nothing and raises nothing."""
    assert figures(page, tmp_path) == []


def test_what_cannot_be_read_is_no_failure(page: Page, tmp_path: Path) -> None:
    """A cpu.stat that cannot be read is passed over for the next best."""
    root = tree(tmp_path, "0::/api\n", {"": text(V2, 100, 20)})
    (root / "sys/fs/cgroup/api/cpu.stat").mkdir(parents=True)
    assert figures(page, root) == [100, 20, 1.5]


def test_names_may_be_any_bytes(page: Page, tmp_path: Path) -> None:
    """A group whose name is not UTF-8 is found like any other."""
    root = tree(tmp_path, "", {})
    (root / "proc/self/cgroup").write_bytes(b"0::/caf\xe9\n")
    put(root, "caf\udce9", text(V2, 100, 20))
    assert figures(page, root) == [100, 20, 1.5]


def test_refresh_follows_the_file(page: Page, tmp_path: Path) -> None:
    """Each refresh reads anew; a group without a quota so far publishes zeros until it has one."""
    root = tree(tmp_path, "0::/\n", {"": "nr_periods 0\nnr_throttled 0\nthrottled_usec 0\n"})
    source = CgroupSource(page, root)
    source.refresh()
    assert read(page) == [0, 0, 0]
    put(root, "", text(V2, 100, 20))
    source.refresh()
    assert read(page) == [100, 20, 1.5]


def test_a_group_that_has_gone_leaves_its_last_counts(page: Page, tmp_path: Path) -> None:
    """When the file goes away refresh says so, and the counters do not fall back."""
    root = tree(tmp_path, "0::/\n", {"": text(V2, 100, 20)})
    source = CgroupSource(page, root)
    source.refresh()
    (root / "sys/fs/cgroup/cpu.stat").unlink()
    with pytest.raises(FileNotFoundError):
        source.refresh()
    assert read(page) == [100, 20, 1.5]


def test_this_machine_can_be_asked(page: Page) -> None:
    """On the machine at hand the source works, whatever there is to read."""
    assert len(figures(page, Path("/"))) in (0, len(METRICS))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (text(V2, 3, 2), (3, 2, 1.5)),
        (text(V1, 3, 2), (3, 2, 1.5)),
        (V2_WITHOUT_CONTROLLER, None),
        ("", None),
        ("nr_periods 3\nnr_throttled 2\n", None),
    ],
)
def test_parsing_knows_both_versions(content: str, expected: tuple[float, ...] | None) -> None:
    """Both versions give periods, throttled periods and seconds; half a file gives nothing."""
    assert parse_statistics(content) == expected


def test_places_are_named_best_first() -> None:
    """Version 2 goes up from the process' group to the root; version 1 knows only the two."""
    assert list(candidate_places("0::/a/b\n")) == ["a/b", "a", ""]
    assert list(candidate_places("4:cpu,cpuacct:/a/b\n")) == [
        "cpu,cpuacct/a/b", "cpu,cpuacct", "cpu/a/b", "cpu",
    ]  # fmt: skip
