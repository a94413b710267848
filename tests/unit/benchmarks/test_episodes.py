from benchmarks.episodes import Episode, episodes


def test_slow_repetitions_close_to_each_other_are_one_episode() -> None:
    quick = [0.001] * 300
    taken_s = [*quick, 0.02, 0.001, 0.03, *quick, 0.01, *quick]
    first, second = episodes(taken_s)
    assert (round(first.began_s, 3), round(first.ended_s, 3), round(first.slow_s, 3)) == (0.3, 0.351, 0.05)
    assert round(second.began_s, 3) == 0.651


def test_what_takes_a_little_longer_is_no_episode() -> None:
    assert episodes([0.001, 0.0012, 0.0039, 0.001, 0.001]) == []


def test_an_episode_may_be_at_the_very_beginning() -> None:
    assert episodes([0.01, 0.001, 0.001]) == [Episode(0.0, 0.01, 0.01)]
