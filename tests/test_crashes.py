import pytest

from ser_ray.base.errors import UserError
from ser_ray.store.crashes import MAX_DEATHS_OF_CLIP, MAX_DEATHS_OF_TASK, Attempts


def test_a_task_that_comes_back_leaves_no_note(tmp_path):
    attempts = Attempts(str(tmp_path / "attempts" / "task.json"))
    assert attempts.take("a") and attempts.take("b")
    attempts.end()
    assert not list(tmp_path.rglob("*.json"))


def test_the_clip_in_hand_at_two_deaths_is_left_alone(tmp_path):
    path = str(tmp_path / "task.json")
    Attempts(path).take("a")  # dies here or later: nothing is known yet
    for _ in range(MAX_DEATHS_OF_CLIP):
        attempts = Attempts(path)
        assert attempts.take("a")
        assert attempts.take("b")  # dies here
    attempts = Attempts(path)
    assert attempts.take("a") and not attempts.take("b") and attempts.take("c")


def test_one_death_is_held_against_nobody(tmp_path):
    path = str(tmp_path / "task.json")
    Attempts(path)
    Attempts(path).take("a")
    assert Attempts(path).take("a")


def test_a_task_that_keeps_dying_ends_the_job(tmp_path):
    path = str(tmp_path / "task.json")
    for _ in range(1 + MAX_DEATHS_OF_TASK):
        Attempts(path)
    with pytest.raises(UserError, match="lost its worker"):
        Attempts(path)
