"""Children end with the process that started them, however that one ends, and leave nothing on disk."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAMS = {
    "multiprocessing": """
import multiprocessing, sys, time
from pathlib import Path
from tempfile import TemporaryDirectory
from fxfuse.lifeline import end_with_driver

def child(folder):
    end_with_driver()
    with TemporaryDirectory(dir=folder) as scratch:
        Path(scratch, "there").touch()
        time.sleep(60)

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[2]).Process(target=child, args=(sys.argv[1],), daemon=True)
    process.start()
    print(process.pid, flush=True)
    process.join()
""",
    "stdin": """
import subprocess, sys
CHILD = '''
import sys, time
from pathlib import Path
from tempfile import TemporaryDirectory
from fxfuse.lifeline import end_with_stdin
end_with_stdin()
with TemporaryDirectory(dir=sys.argv[1]) as scratch:
    Path(scratch, "there").touch()
    time.sleep(60)
'''
process = subprocess.Popen([sys.executable, "-c", CHILD, sys.argv[1]], stdin=subprocess.PIPE)
print(process.pid, flush=True)
process.wait()
""",
}
METHODS = sorted(set(multiprocessing.get_all_start_methods()) & {"forkserver", "spawn"})


def eventually(holds) -> bool:
    for _ in range(400):
        if holds():
            return True
        time.sleep(0.05)
    return False


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_that_comes_to_its_end_is_let_go():
    code = "from fxfuse.lifeline import end_with_stdin; end_with_stdin(); print('done')"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(60) == 0
        assert process.stdout.read() == b"done\n"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="asks a POSIX system which processes there are")
@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("method", [*METHODS, "stdin"])
def test_a_child_ends_with_its_driver(method, end, tmp_path):
    script, folder = tmp_path / "program.py", tmp_path / "scratch"
    script.write_text(PROGRAMS["stdin" if method == "stdin" else "multiprocessing"], encoding="utf-8")
    folder.mkdir()
    command = [sys.executable, str(script), str(folder), method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        pid = int(driver.stdout.readline())
        try:
            assert eventually(lambda: list(folder.glob("*/there")))
            assert runs(pid)
            driver.send_signal(getattr(signal, end))
            driver.wait()
            assert eventually(lambda: not runs(pid))
            assert not list(folder.iterdir())
        finally:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)
