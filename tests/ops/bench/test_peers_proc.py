"""CPU time and memory as /proc has them."""

import os
import subprocess
import sys
from pathlib import Path

from ops.bench.peers.proc import busy_seconds, cpu_seconds, peak_bytes

TICKS = os.sysconf("SC_CLK_TCK")


def process(proc: Path, number: int, group: int, times: tuple[int, ...], peak_kb: int) -> None:
    folder = proc / str(number)
    folder.mkdir()
    before = f"{number} (a (strange) name) S 1 {group} {group} 0 -1 4194560 1 2 3 4"
    (folder / "stat").write_text(f"{before} {' '.join(map(str, times))} 20 0 1 0\n")
    (folder / "status").write_text(f"Name:\tx\nVmHWM:\t{peak_kb:8} kB\nVmRSS:\t1 kB\n")


def test_busy_time_is_all_but_idle_and_waiting_for_disks(tmp_path: Path) -> None:
    #                           user nice system idle iowait irq softirq steal guest guest_nice
    (tmp_path / "stat").write_text("cpu  1 2 4 1000 2000 8 16 32 64 128\ncpu0 9 9 9 9\n")
    assert busy_seconds(tmp_path) == (1 + 2 + 4 + 8 + 16 + 32) / TICKS


def test_a_groups_processes_are_added_up_and_no_others(tmp_path: Path) -> None:
    process(tmp_path, 10, 10, (1, 2, 4, 8), peak_kb=100)
    process(tmp_path, 11, 10, (16, 32, 64, 128), peak_kb=200)
    process(tmp_path, 12, 12, (1000, 0, 0, 0), peak_kb=400)
    (tmp_path / "13").mkdir()  # ended while we looked
    assert cpu_seconds(10, tmp_path) == 255 / TICKS
    assert peak_bytes(10, tmp_path) == 300 * 1024


def test_the_real_files_are_understood() -> None:
    # Spins until 50 ms of its own CPU time are spent, so that how busy others are does not matter.
    spin = "import time\nwhile time.process_time() < 0.05: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", spin],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        own_s, peak = cpu_seconds(child.pid), peak_bytes(child.pid)
        child.communicate(b"\n")
    assert 0.02 < own_s < 2
    assert 2**20 < peak < 2**30
    assert busy_seconds() >= own_s
