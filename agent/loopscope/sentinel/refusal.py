"""Why the kernel refuses to let us look into a process, and what to grant so that it will not.

The kernel answers with nothing but "not permitted", whatever the reason. The reasons are its own
(``ptrace_may_access`` and, where it is built in, Yama's), asked in its order: whoever has the
capability is refused by few, and without it somebody else's process is out of reach.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_SCOPE = _PROC / "sys/kernel/yama/ptrace_scope"
_SYS_PTRACE = 1 << 19
"""``CAP_SYS_PTRACE`` among a process' capabilities."""
_FILTERED = 2
"""``Seccomp:`` where system calls are filtered."""

_GRANT = (
    "grant SYS_PTRACE (docker run --cap-add SYS_PTRACE; in Kubernetes securityContext: "
    "{capabilities: {add: [SYS_PTRACE]}})"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the kernel goes by: who asks, who is asked about, and what holds on this machine."""

    pid: int
    our_user: int
    is_capable: bool
    """Whether we have ``CAP_SYS_PTRACE``."""
    is_filtered: bool
    """Whether our system calls go through a seccomp filter, as a container's do."""
    scope: int
    """``kernel.yama.ptrace_scope``; 0 where there is no Yama."""
    their_user: int | None
    """None where that cannot be read."""
    is_dumpable: bool
    exceeds_us: bool
    """Whether the process has capabilities that we have not."""
    tracer: int = 0
    """Who is attached to it, where that is in the way."""
    unreadable: str = ""
    """The process' program, where this is a file that we may not read."""


def reason(pid: int, *, attaches: bool = False) -> str:
    """One sentence: why process ``pid`` may not be looked into, and what to do about it.

    ``attaches``: we would have stopped it for that, as debuggers do, and not only have read.
    """
    if sys.platform == "darwin":
        return f"macOS lets only root look into process {pid}; run this with sudo"
    return judged(standing(pid, attaches=attaches))


def judged(found: Standing) -> str:
    """The sentence for what was ``found``."""
    return f"the kernel refuses a look into process {found.pid}: {_cause(found)}"


def _cause(found: Standing) -> str:
    if found.tracer:
        return f"process {found.tracer} is attached to it already, and only one can be; end that"
    if found.scope >= 3:
        return (
            "kernel.yama.ptrace_scope is 3, which allows it to nobody until the machine boots with "
            "another value"
        )
    if found.is_capable:
        return _cause_despite_capability(found)
    if found.unreadable:
        return (
            f"its program {found.unreadable} cannot be read by user {found.our_user}, and py-spy "
            "has to; run this as a user who may read it"
        )
    if found.their_user not in (None, found.our_user):
        return (
            f"it belongs to user {found.their_user} and this is user {found.our_user}; run this as "
            f"the same user, or {_GRANT}"
        )
    if not found.is_dumpable:
        return (
            "it is not dumpable (prctl PR_SET_DUMPABLE, or it has changed its user since it was "
            f"started); start it as user {found.our_user} in the first place, or {_GRANT}"
        )
    if found.exceeds_us:
        return f"it has capabilities that this process lacks; give both the same, or {_GRANT}"
    if found.scope == 2:
        return f"kernel.yama.ptrace_scope is 2; {_GRANT} and run as root, or set the scope to 1"
    if found.scope == 1:
        return (
            "kernel.yama.ptrace_scope is 1 and the process has not named this one as its tracer; "
            f"set sysctl kernel.yama.ptrace_scope=0 on the host, or {_GRANT} and run as root"
        )
    if found.is_filtered:
        return f"a seccomp filter keeps this process from process_vm_readv and ptrace; {_GRANT}"
    return f"perhaps by AppArmor or SELinux, or for being in another user namespace; {_GRANT}"


def _cause_despite_capability(found: Standing) -> str:
    if found.is_filtered:
        return (
            "although this process has SYS_PTRACE; a seccomp filter is in force, which has to "
            "allow process_vm_readv and ptrace (docker run --security-opt seccomp=...)"
        )
    return (
        "although this process has SYS_PTRACE; perhaps by AppArmor or SELinux, or for being in "
        "another user namespace"
    )


def standing(pid: int, *, attaches: bool = False) -> Standing:
    """What ``/proc`` says; what it does not say is taken to be harmless."""
    ours, theirs = _status(_PROC / "self/status"), _status(_PROC / str(pid) / "status")
    our_capabilities = int(ours.get("CapEff", "0"), 16)
    their_user = int(theirs["Uid"].split()[1]) if "Uid" in theirs else None
    return Standing(
        pid=pid,
        our_user=os.geteuid(),
        is_capable=bool(our_capabilities & _SYS_PTRACE),
        is_filtered=int(ours.get("Seccomp", "0")) == _FILTERED,
        scope=_scope(),
        their_user=their_user,
        is_dumpable=their_user is None or _owner(pid) in (None, their_user),
        exceeds_us=bool(int(theirs.get("CapPrm", "0"), 16) & ~int(ours.get("CapPrm", "0"), 16)),
        tracer=int(theirs.get("TracerPid", "0")) if attaches else 0,
        unreadable=_unreadable_program(pid),
    )


def _status(path: Path) -> dict[str, str]:
    """A ``/proc/*/status`` file by its names; empty where there is none."""
    with suppress(OSError):
        lines = path.read_text(errors="replace").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def _owner(pid: int) -> int | None:
    """Whom the kernel gives a process' files to: root, where it is not dumpable.

    Its directory is not among these.
    """
    with suppress(OSError):
        return (_PROC / str(pid) / "status").stat().st_uid
    return None


def _unreadable_program(pid: int) -> str:
    with suppress(OSError):
        program = (_PROC / str(pid) / "exe").readlink()
        return "" if os.access(_PROC / str(pid) / "exe", os.R_OK) else str(program)
    return ""


def _scope() -> int:
    with suppress(OSError, ValueError):
        return int(_SCOPE.read_text())
    return 0
