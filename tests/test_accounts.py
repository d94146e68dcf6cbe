"""What the end of a featurization says of the files it could not use."""

from collections import Counter

import pytest

from ser_ray.speech.corpora.grammar import decode_field
from ser_ray.speech.utterance import Reject
from ser_ray.store import accounts
from ser_ray.store.store import Store

EMPTY = [f"row {row}: speaker_id is empty" for row in range(22, 62, 2)]
WRONG = ["damaged header: 70 channels", "damaged header: 65535 channels", "damaged header: a sample rate of 900 Hz"]


def told(capsys, reasons):
    rejects = [Reject(f"/data/{i}.wav", "own", "", reason) for i, reason in enumerate(reasons)]
    accounts._say_rejects(rejects, Store("/data/store"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Rejected: ")]
    return [line.removeprefix("Rejected: ") for line in lines]


def test_twenty_rows_without_a_speaker_are_one_line(capsys):
    assert told(capsys, [*WRONG, *EMPTY]) == [
        "20 × row 22: speaker_id is empty, such as /data/3.wav",
        "2 × damaged header: 70 channels, such as /data/0.wav",
        "1 × damaged header: a sample rate of 900 Hz, such as /data/2.wav",
    ]


def test_rare_reasons_are_counted_too(capsys):
    reasons = [f"{word} is odd" for word in "abcdefghi"] + ["j is odd"] * 2 + ["k is odd"] * 3
    *listed, last = told(capsys, reasons)
    assert len(listed) == 8 and last == "3 more, for 3 other reasons"
    assert sum(int(line.split(" ")[0]) for line in (*listed, last)) == len(reasons)


@pytest.mark.parametrize(
    "alike",
    [
        ("truncated: its header promises 12 bytes, 9 are there", "truncated: its header promises 9 bytes, 0 are there"),
        ("unknown emotion 'bored'", 'unknown emotion "it\'s"', "unknown emotion 'a: b / c'", "unknown emotion ''"),
        (
            "another version of /a/b.flac",
            "another version of /my clips/day 1/b c.wav",
            "another version of s3://b/c.wav",
        ),
        ("same id as C:\\my clips\\a.wav, other audio", "same id as /tmp/1/a, other audio"),
        ("a peak of 3e+02 times full scale", "a peak of -1.5 times full scale"),
        ("codec G.726 (0x0045) is unknown", "codec IMA ADPCM (0x0011) is unknown", "codec 0x0031 is unknown"),
        ("speakers 'a' and 'b' at once", "speakers 'a', 'b c' and 'd' at once"),
        ("folder “a b”: denied", "folder «c»: denied"),
        ("silent from 0.6 to 3.1 s", "silent from 10 to 12 s"),
    ],
)
def test_numbers_names_and_paths_make_no_kind(alike):
    assert len({accounts.kind_of_reason(reason) for reason in alike}) == 1


def test_what_is_wrong_makes_the_kind():
    reasons = [
        *("row 1: speaker_id is empty", "row 2: emotion is empty", "row 3: the file is listed twice"),
        *("damaged header: 70 channels", "damaged header: a sample rate of 9 Hz", "no samples", "empty file"),
        *("cannot be read: Permission denied", "cannot be read: Stale file handle", "file not found"),
        *("the file's end isn't there", "the file's start isn't there"),
        *("truncated: its header promises 12 bytes, 9 are there", "truncated: its header promises 2.00 s"),
    ]
    assert len({accounts.kind_of_reason(reason) for reason in reasons}) == len(reasons)


def test_codes_that_a_corpus_does_not_have_are_one_kind_for_each_field():
    kinds = Counter()
    for field, codes in (("sentence", ("XYZ", "QQQ")), ("emotion", ("XYZ", "00"))):
        for code in codes:
            with pytest.raises(ValueError) as error:
                decode_field(field, code, {"DFA": "", "IEO": ""})
            kinds[accounts.kind_of_reason(str(error.value))] += 1
    assert sorted(kinds.values()) == [2, 2]
