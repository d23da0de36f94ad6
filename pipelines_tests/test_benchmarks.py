from benchmarks import run


def test_every_pair_of_the_benchmark_is_timed_and_printed(capsys):
    ratios = run.main(["--size", "32", "--repeats", "1"])
    assert len(ratios) == 4 and all(ratio > 0 for ratio in ratios.values())
    assert capsys.readouterr().out.count(" s = ") == 4
