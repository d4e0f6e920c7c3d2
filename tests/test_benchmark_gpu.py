"""The GPU checks all run, in small, on a CPU: what needs CUDA says so, and what must be right is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import environment, write_text

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark_gpu.py"
NAMES = ["peak", "correctness", "speed", "profile", "lightning", "precision", "generation", "run"]


@pytest.mark.slow
def test_all_eight_checks_run_in_small_on_a_cpu(tmp_path):
    write_text(tmp_path / "text.txt", 20_000)
    command = [sys.executable, SCRIPT, "--device", "cpu", "--tiny", "--corpus", "text.txt", "--output", "out"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    files = [tmp_path / "out" / f"{number}_{name}.json" for number, name in enumerate(NAMES, 1)]
    rows = {file.stem[2:]: json.loads(file.read_text())["rows"] for file in files}
    assert all(row["ok"] is not False for check in rows.values() for row in check)
    assert sum(row["ok"] is True for row in rows["correctness"]) == 5, "two attentions, loss, checkpoint, resume"
    assert "needs CUDA" in json.dumps(rows["generation"]) and "of kernel time" in json.dumps(rows["profile"])
    for name in NAMES:
        assert f" {name}\n" in result.stdout
    assert "micro_batch_size" in (tmp_path / "out" / "fastest.yaml").read_text()


@pytest.mark.slow
def test_without_a_gpu_it_says_how_to_try_it():
    result = subprocess.run([sys.executable, SCRIPT], env=environment(), capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "--device cpu --tiny" in result.stderr
