"""`inkwash bench`."""

import json

import pytest


@pytest.mark.parametrize(
    "task", [["unet", "--error"], ["lora"], ["control"], ["picture", "--steps", 1]], ids=lambda task: task[0]
)
def test_reports(run, task):
    options = ["--family", "mini", "--size", 64, "--runs", 1, "--threads", 1, "--dtype", "fp32", "--json"]
    result = run("bench", *task, *options)
    made = json.loads(result.out)
    assert result.code == 0
    assert 0 < made["ours_s"] < 60 and made["peak_bytes"] > 2**27
    assert made["settings"]["family"] == "mini" and {"torch", "python"} <= set(made["versions"])
    assert made.get("ours_error", 0) < 1e-5


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["unet", "--size", 100], "--size is a multiple of 64"),
        (["picture", "--error"], "--error is of one network's call"),
        (["picture", "--peer", "openvino"], "--peer openvino runs one network"),
        (["vae", "sideways"], "sideways"),
        (["unet", "--family", "sd9"], "sd9"),
    ],
)
def test_usage(run, argv, said):
    result = run("bench", *argv)
    assert result.code == 2 and said in result.err and not result.out


def test_a_peer_that_is_not_installed(run, monkeypatch):
    monkeypatch.setattr("inkwash.cli.bench.find_spec", lambda name: None)
    result = run("bench", "unet", "--peer", "openvino")
    assert result.code == 2 and "pip install openvino" in result.err
