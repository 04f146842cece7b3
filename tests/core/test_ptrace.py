"""Who may look into this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from loopscope.core.ptrace import allow_others_to_trace


def test_a_kernel_without_yama_takes_no_note() -> None:
    """It asks nobody whom they would let in, so there is nothing to allow."""
    knows = Path("/proc/sys/kernel/yama").exists()
    assert allow_others_to_trace(os.getpid()) == knows
    assert allow_others_to_trace(None) == knows


def test_elsewhere_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """``prctl`` is Linux' own."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allow_others_to_trace(None)
