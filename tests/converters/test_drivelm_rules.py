"""The challenge's rules: pools, letters, and which questions are scored."""

import json
from collections import Counter
from pathlib import Path

import pytest

from adapt.converters._drivelm_rules import (
    BEHAVIOUR_POOL,
    FAMILIES,
    MOVING_STATUS_POOL,
    OPTIONS_PHRASE,
    Question,
    challenge_tags,
    letter_question,
    option_pool,
)

MOVING = Question(3, "perception", "What is the moving status of object <c1>?", "Turn left.")
BEHAVIOUR = Question(
    9,
    "behavior",
    "Predict the behavior of the ego vehicle.",
    "The ego vehicle is going straight. The ego vehicle is driving fast.",
)


class TestLetters:
    def test_pools(self) -> None:
        assert (len(set(MOVING_STATUS_POOL)), len(set(BEHAVIOUR_POOL))) == (7, 21)
        assert option_pool(MOVING) == MOVING_STATUS_POOL
        assert option_pool(BEHAVIOUR) == BEHAVIOUR_POOL

    @pytest.mark.parametrize(
        "question",
        [
            Question(0, "perception", "What is the observed status of object <c1>?", "Moving."),
            Question(0, "prediction", "What is the moving status of object <c1>?", "Stopped."),
            Question(0, "behavior", f"Predict. {OPTIONS_PHRASE} A. x B. y C. z D. w", "A"),
        ],
    )
    def test_other_questions_have_no_pool(self, question: Question) -> None:
        assert option_pool(question) == ()

    @pytest.mark.parametrize("question", [MOVING, BEHAVIOUR])
    def test_the_letter_names_the_answer(self, question: Question) -> None:
        for seed in range(50):
            lettered = letter_question(question, seed=seed, record_id="drivelm/train/a_b_3")
            assert lettered is not None
            assert len(set(lettered.options)) == 4
            assert set(lettered.options) <= set(option_pool(question))
            assert lettered.options["ABCD".index(lettered.answer)] == question.answer
            a, b, c, d = lettered.options
            assert lettered.question == (
                f"{question.text} Please select the correct answer from the following options: "
                f"A. {a} B. {b} C. {c} D. {d}"
            )

    def test_the_draw_is_fixed(self) -> None:
        """These options are in datasets that exist: they must not change."""
        lettered = letter_question(MOVING, seed=42, record_id="drivelm/train/a_b_3")
        assert lettered is not None
        assert lettered.answer == "B"
        assert lettered.options == (
            "Turn right.",
            "Turn left.",
            "Reverse parking.",
            "Drive backward.",
        )

    def test_the_draw_depends_on_seed_and_record(self) -> None:
        drawn = {
            letter_question(MOVING, seed=seed, record_id=record)
            for seed in range(5)
            for record in ("a", "b", "c")
        }
        assert len(drawn) > 10

    def test_every_option_and_letter_is_as_likely(self) -> None:
        letters: Counter[str] = Counter()
        options: Counter[str] = Counter()
        for number in range(2000):
            lettered = letter_question(MOVING, seed=42, record_id=str(number))
            assert lettered is not None
            letters[lettered.answer] += 1
            options.update(lettered.options)
        # 500 +- 5 standard deviations; 3 of 6 others in 2000 draws: 1000 +- 5 of them.
        assert all(abs(count - 500) < 97 for count in letters.values()), letters
        assert options.pop("Turn left.") == 2000
        assert all(abs(count - 1000) < 112 for count in options.values()), options

    def test_an_answer_outside_the_pool(self) -> None:
        other = Question(3, "perception", MOVING.text, "Parked.")
        assert letter_question(other, seed=42, record_id="a") is None


def questions(*rows: tuple[str, str, str]) -> list[Question]:
    return [Question(number, *row) for number, row in enumerate(rows)]


OBJECTS = [("<c1,CAM_BACK,1.0,2.0>", "Brown SUV."), ("<c2,CAM_BACK,3.0,4.0>", "Red light.")]


class TestChallengeTags:
    def test_one_of_each_the_first_that_fits(self) -> None:
        asked = questions(
            ("perception", "What are objects to the back?", "A brown SUV."),
            ("perception", "Important objects?", "A brown suv and a RED LIGHT."),
            ("perception", "Important objects again?", "A brown SUV and a red light."),
            ("perception", "What is the moving status of object <c1>?", "Turn left."),
            ("perception", "What is the moving status of object <c2>?", "Stopped."),
            ("prediction", "Which first?", "<c1,CAM_BACK,1.0,2.0>, <c2,CAM_BACK,3.0,4.0>"),
            ("prediction", "Which second?", "<c1,CAM_BACK,1.0,2.0>"),
            ("prediction", "Is it a sign?", "Yes."),
            ("prediction", "Is it a car?", "No."),
            ("planning", "What actions could the ego vehicle take based on <c1>?", "Stop."),
            ("planning", "What actions could the ego vehicle take based on <c2>?", "Go."),
            ("planning", "What actions can lead to a collision with <c1>?", "Back up."),
            ("planning", "In this scenario, what are safe actions?", "Brake."),
            ("planning", "In this scenario, what are dangerous actions?", "Go."),
            ("behavior", "Predict the behavior of the ego vehicle.", "Straight."),
        )
        assert challenge_tags(asked, OBJECTS) == {
            1: [2],
            3: [0],
            5: [3],
            7: [0],
            9: [1],
            11: [1],
            12: [1],
            14: [0],
        }

    def test_no_is_found_inside_words_and_the_later_rule_decides(self) -> None:
        """As in the challenge's script: `notice` holds `no`."""
        asked = questions(
            ("prediction", "Which first?", "Notice <c1,CAM_BACK,1.0,2.0>, <c2,CAM_BACK,3.0,4.0>"),
            ("prediction", "Is it a sign?", "No."),
        )
        assert challenge_tags(asked, OBJECTS) == {0: [0]}

    def test_nothing_fits(self) -> None:
        asked = questions(("perception", "Q", "A"), ("planning", "Q", "A"))
        assert challenge_tags(asked, OBJECTS) == {}


def test_the_tags_of_the_challenges_own_sample(shared: Path) -> None:
    """`challenge/test_eval.json` was made by the official scripts from the same frames."""
    raw = shared / "data" / "drivelm_nuscenes"
    train = json.loads((raw / "v1_1_train_nus.sample.json").read_bytes())
    official = json.loads((raw / "challenge" / "test_eval.json").read_bytes())
    compared = 0
    for scene, content in official.items():
        for token, frame in content["key_frames"].items():
            ours = train[scene]["key_frames"][token]
            asked = questions(
                *((name, qa["Q"], qa["A"]) for name in FAMILIES for qa in ours["QA"][name])
            )
            objects = [
                (tag, info["Visual_description"]) for tag, info in ours["key_object_infos"].items()
            ]
            tags = challenge_tags(asked, objects)
            expected = [
                (qa["Q"].split(f" {OPTIONS_PHRASE}")[0], qa["tag"])
                for name in FAMILIES
                for qa in frame["QA"][name]
            ]
            found = [(q.text, tags[q.number]) for q in asked if q.number in tags]
            assert sorted(found) == sorted(expected), token
            compared += len(found)
    assert compared == 44
