from benchmarks import run, train_step


def test_every_pair_of_the_benchmark_is_timed_and_printed(capsys):
    ratios = run.main(["--size", "32", "--repeats", "1"])
    assert len(ratios) == 4 and all(ratio > 0 for ratio in ratios.values())
    assert capsys.readouterr().out.count(" s = ") == 4


def test_every_form_of_a_training_step_is_timed_beside_its_products(capsys):
    seconds = train_step.main(["--batch-size", "1", "--repeats", "1", "--no-compile"])
    assert list(seconds)[0].startswith("straightforward") and list(seconds)[-1].startswith("limit")
    assert len(seconds) >= 3 and all(value > 0 for value in seconds.values())
    assert capsys.readouterr().out.count("x") >= 2 * len(seconds)
