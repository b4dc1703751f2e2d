"""What one attempt commits, the next one finds: or it says why not."""

import dataclasses
import errno
import re
import signal
import time

import numpy as np
import pytest

from packedesm.embedding.commits import Commit
from packedesm.embedding.pack import FinishedPack, PackStatistics
from packedesm.embedding.replan import Replan
from packedesm.embedding.resume import Attempt, Settled, ShardState
from packedesm.errors import Damaged, Fault
from packedesm.files import explained, read_json, write_record
from packedesm.options import EmbedPlan
from tests.typed import embed_plan

OUTPUTS = ("mean", "residue")
ASKED = {"fasta_sha256": "a" * 64, "dtype": "auto"}
CPU = {"kind": "cpu", "name": "a processor"}
NUMBERS = range(100)  # of the packs of the plan


def pack(number: int, records: int = 3) -> FinishedPack:
    generator = np.random.default_rng(number)
    rows = np.arange(records) + number * records
    residues = generator.integers(1, 9, records)
    vectors = {
        "mean": generator.standard_normal((records, 4)).astype(np.float16),
        "residue": generator.standard_normal((residues.sum(), 4)).astype(np.float16),
    }
    times = {"wait_seconds": 0.0, "forward_seconds": 1.0, "finished_seconds": 1.5 * (number + 1)}
    statistics = PackStatistics(
        number,
        records,
        int(residues.sum()),
        60,
        64,
        0.9,
        **times,
        passes=1,
        deferred_records=1 - number % 2,
        float32_records=0,
    )
    deferred = np.array([1000 + number])[number % 2 :]
    return FinishedPack(statistics, rows, residues, vectors, deferred)


GPU = {"kind": "cuda", "name": "NVIDIA H100"}


def adopt(state, *, token_budget=64, device=CPU, **asked) -> EmbedPlan:
    """Fix the plan of an attempt and return it."""
    asked = ASKED | {"token_budget": token_budget} | asked
    settled = state.settled(asked)
    if settled is None:
        budget = 64 if token_budget == "auto" else token_budget
        settled = Settled(embed_plan(arrays=OUTPUTS, token_budget=budget), **device)
    state.adopt(asked, settled)
    return settled.plan


def attempt(folder, numbers, *, packs=3, peak=None, **changed) -> ShardState:
    """Let one attempt commit packs of these numbers, a file for every three."""
    state = ShardState(folder)
    adopt(state, **changed)
    state.committed(NUMBERS)
    with state.committing(seconds=60, packs=packs, peak=peak) as commit:
        for number in numbers:
            commit(pack(number))
    return state


def assert_equal(found: FinishedPack, expected: FinishedPack):
    for field in dataclasses.fields(FinishedPack):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "vectors":
            assert a.keys() == b.keys()
            for name in a:
                assert a[name].dtype == b[name].dtype
                np.testing.assert_array_equal(a[name], b[name])
        elif field.name == "statistics":
            assert a == b
        else:
            np.testing.assert_array_equal(a, b)


def commits(folder):
    return sorted(folder.glob("*.commit"))


def test_what_was_committed_comes_back_as_it_was(tmp_path):
    attempt(tmp_path, range(7))
    assert [re.match(r"\d+-\d+", path.name)[0] for path in commits(tmp_path)] == [
        "00000000-00000002",
        "00000003-00000005",
        "00000006-00000006",
    ]
    state = attempt(tmp_path, [8, 7])
    assert list(state.statistics()) == list(range(9))
    found = {pack.statistics.pack: pack for pack in state.finished()}
    for number in range(9):
        assert_equal(found[number], pack(number))


def test_a_pack_that_two_attempts_committed_comes_once(tmp_path):
    attempt(tmp_path, range(4))
    state = attempt(tmp_path, range(2, 6))
    assert [pack.statistics.pack for pack in state.finished()] == list(range(6))
    attempts = state.attempts()
    assert (attempts["restarts"], attempts["recomputed_packs"]) == (1, 2)


def test_a_commit_that_changes_after_it_was_taken_over_is_not_read_on(tmp_path):
    attempt(tmp_path, range(2))
    (path,) = commits(tmp_path)
    content = path.read_bytes()
    for place in range(0, len(content) - 32, 13):
        state = attempt(tmp_path, [])
        path.write_bytes(content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :])
        with pytest.raises(Damaged, match=str(path)):
            list(state.finished())
        path.write_bytes(content)


def test_a_commit_is_made_when_it_is_time(tmp_path):
    state = ShardState(tmp_path)
    adopt(state)
    with state.committing(seconds=1e-9, packs=100) as commit:
        commit(pack(0))
        commit(pack(1))
        assert len(commits(tmp_path)) == 2


@pytest.mark.parametrize(
    "error",
    [
        *(KeyboardInterrupt(), SystemExit(143), ValueError("bug")),
        *(Fault("a record does not fit into memory"), Damaged("the FASTA file is damaged")),
    ],
)
def test_what_has_finished_is_committed_whatever_ends_the_attempt(tmp_path, error):
    state = ShardState(tmp_path)
    adopt(state)
    with (
        pytest.raises(type(error)),
        state.committing(seconds=60, packs=100) as commit,
    ):
        commit(pack(0))
        raise error
    assert list(attempt(tmp_path, []).statistics()) == [0]


def test_a_signal_does_not_interrupt_the_last_commit(tmp_path, monkeypatch):
    def stop(_number, _frame):
        raise SystemExit(143)

    def interrupted():
        signal.raise_signal(signal.SIGALRM)
        time.sleep(0.1)  # Python tells the main thread meanwhile

    state = ShardState(tmp_path)
    adopt(state)
    monkeypatch.setattr(state.claim, "check", interrupted)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with (
            pytest.raises(SystemExit),
            state.committing(seconds=60, packs=100) as commit,
        ):
            commit(pack(0))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert list(attempt(tmp_path, []).statistics()) == [0]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_could_not_be_written_is_not_committed(tmp_path, number, monkeypatch):
    def fail(_file, data):
        raise OSError(number, "cannot write")

    state = ShardState(tmp_path)
    adopt(state)
    with (
        pytest.raises((Fault, OSError)),
        state.committing(seconds=60, packs=2) as commit,
    ):
        for done in range(3):
            commit(pack(done))
        monkeypatch.setattr("packedesm.embedding.commits._HashedFile.write", fail)
        commit(pack(3))
    monkeypatch.undo()
    assert [Commit.read(path).statistics for path in commits(tmp_path)] == [
        [pack(0).statistics, pack(1).statistics]
    ]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".packedesm-")]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip(place):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 4
        path.write_bytes(content)

    return damage


@pytest.mark.parametrize("damage", [cut_short, empty, *map(flip, (0, 0.1, 0.5, 0.9, 0.97, 1))])
def test_a_damaged_commit_is_discarded_and_its_packs_are_done_again(tmp_path, damage, caplog):
    attempt(tmp_path, range(6))
    damaged = commits(tmp_path)[1]
    damage(damaged)
    with pytest.raises(Damaged):
        Commit.read(damaged)
    state = ShardState(tmp_path)
    adopt(state)
    assert list(state.committed(NUMBERS)) == [0, 1, 2]
    assert f"discarding {damaged}" in caplog.text
    assert not damaged.exists()
    assert state.attempts()["discarded_commits"] == 1


def test_a_commit_of_another_version_is_discarded(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "packedesm.embedding.commits.asdict",
            lambda pack: dataclasses.asdict(pack) | {"chunks": 1},
        )
        attempt(tmp_path, range(3))
    # Otherwise its plan would say that all is of another version.
    (tmp_path / "plan.json").unlink()
    assert list(attempt(tmp_path, [7]).statistics()) == [7]


def test_every_flipped_bit_of_a_commit_is_noticed(tmp_path):
    attempt(tmp_path, [0])
    (path,) = commits(tmp_path)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(Damaged):
            Commit.read(path)


@pytest.mark.parametrize("changed", [{"fasta_sha256": "b" * 64}, {"token_budget": 65}, {"x": 1}])
def test_another_input_or_configuration_starts_over_and_says_so(tmp_path, changed, caplog):
    attempt(tmp_path, range(4))
    state = attempt(tmp_path, [9], **changed)
    assert list(state.statistics()) == [9]
    assert "starting over" in caplog.text
    assert next(iter(changed)) in caplog.text
    assert state.attempts()["restarts"] == 0


def test_what_was_settled_holds_for_the_attempts_that_follow(tmp_path):
    attempt(tmp_path, range(4), token_budget="auto", device=GPU)
    state = ShardState(tmp_path)
    settled = state.settled(ASKED | {"token_budget": "auto"})
    assert settled == Settled(embed_plan(arrays=OUTPUTS), **GPU)
    # Another GPU of that kind, with room for more.
    adopt(state, token_budget="auto")
    assert list(state.committed(NUMBERS)) == [0, 1, 2, 3]


def test_who_asks_for_what_was_settled_goes_on(tmp_path):
    attempt(tmp_path, range(4), token_budget="auto")
    state = attempt(tmp_path, [], token_budget=64, dtype="float32")
    assert list(state.statistics()) == [0, 1, 2, 3]
    assert list(attempt(tmp_path, [], token_budget="auto").statistics()) == [0, 1, 2, 3]


def test_asking_for_auto_instead_of_a_name_starts_over(tmp_path, caplog):
    attempt(tmp_path, range(4), dtype="float32")
    assert list(attempt(tmp_path, [], dtype="auto").statistics()) == []
    assert "dtype was 'float32', is 'auto'" in caplog.text


def test_where_nothing_is_committed_nothing_is_settled(tmp_path, caplog):
    attempt(tmp_path, [], device=GPU)
    state = ShardState(tmp_path)
    assert state.settled(ASKED | {"token_budget": 64}) is None
    adopt(state, device=CPU)
    assert attempt(tmp_path, [0]).settled(ASKED | {"token_budget": 64}).kind == "cpu"
    assert "thrown away" not in caplog.text


def test_looking_what_is_settled_deletes_nothing(tmp_path):
    attempt(tmp_path, range(4))
    before = {path.name for path in tmp_path.iterdir()}
    assert ShardState(tmp_path).settled(ASKED | {"token_budget": 65}) is None
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["plan.json", "owner.json", "replans.json"])
@pytest.mark.parametrize("content", ["", "{", '{"format": 1, "token'])
def test_a_damaged_note_is_never_believed(tmp_path, name, content):
    attempt(tmp_path, range(4))
    (tmp_path / name).write_text(content)
    state = attempt(tmp_path, [])
    assert list(state.statistics()) == ([] if name == "plan.json" else [0, 1, 2, 3])
    assert state.replans() == []


def test_a_commit_of_another_plan_is_not_used(tmp_path, caplog):
    attempt(tmp_path / "other", [5], token_budget=65)
    attempt(tmp_path / "state", [0])
    (stray,) = commits(tmp_path / "other")
    stray.rename(tmp_path / "state" / stray.name)
    assert list(attempt(tmp_path / "state", []).statistics()) == [0]
    assert "another input or configuration" in caplog.text


def test_each_attempt_tells_its_peak_and_the_time_of_its_packs(tmp_path):
    attempt(tmp_path, [0, 2], peak=1e9)  # finished 1.5 and 4.5 s after the first began
    attempt(tmp_path, [])
    last = attempt(tmp_path, [3, 5, 6], packs=1)  # 6, 9 and 10.5 s
    assert last.embedding_attempts() == [Attempt(4.5, 1e9), Attempt(6.0, None)]
    assert ShardState(tmp_path / "another").embedding_attempts() == []


def test_the_attempt_that_started_last_is_the_one_that_commits(tmp_path):
    first = ShardState(tmp_path)
    adopt(first)
    with (
        pytest.raises(Fault, match="superseded by process"),
        first.committing(seconds=60, packs=2) as commit,
    ):
        commit(pack(0))
        second = ShardState(tmp_path)
        commit(pack(1))
    assert commits(tmp_path) == []
    adopt(second)
    with second.committing(seconds=60, packs=2) as commit:
        commit(pack(0))
    assert len(commits(tmp_path)) == 1
    with pytest.raises(Fault, match="superseded"):
        first.remove()
    second.remove()
    assert not tmp_path.exists()


def test_an_attempt_that_was_taken_over_while_it_loaded_discards_nothing(tmp_path):
    slower, slow = ShardState(tmp_path), ShardState(tmp_path)
    adopt(slow)
    attempt(tmp_path, [50])  # of packs that it has planned anew
    with pytest.raises(Fault, match="superseded"):
        slow.committed(range(50))
    with pytest.raises(Fault, match="superseded"):
        adopt(slower, token_budget=65)
    assert list(attempt(tmp_path, []).statistics()) == [50]


def test_an_attempt_whose_shard_was_finished_by_another_says_so(tmp_path):
    with pytest.raises(Fault, match="another process finished"), ShardState(tmp_path / "s") as late:
        adopt(late)
        with late.committing(seconds=60, packs=1) as commit:
            ShardState(tmp_path / "s").remove()
            commit(pack(0))


def test_a_missing_file_that_is_not_the_states_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), ShardState(tmp_path):
        (tmp_path / "other").read_text()


def test_unfinished_files_of_killed_attempts_are_cleared(tmp_path):
    state = ShardState(tmp_path)
    adopt(state)
    with pytest.raises(Fault), state.committing(seconds=60, packs=9) as commit:
        commit(pack(0))
        left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".packedesm-")]
        assert left
        ShardState(tmp_path)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".packedesm-")]


def test_times_and_setup_of_attempts_add_up(tmp_path):
    first = attempt(tmp_path, range(4))
    started = first.attempts()["started"]
    first_setup, _ = first.setup_and_total_seconds()
    second = ShardState(tmp_path)
    adopt(second)
    second.committed(NUMBERS)
    assert second.seconds_before == pack(3).statistics.finished_seconds
    with second.committing(seconds=60, packs=9) as commit:
        commit(pack(4))
    assert second.attempts()["started"] == started
    setup, total = second.setup_and_total_seconds()
    assert setup > first_setup > 0
    assert total > second.seconds_before + setup


def test_what_was_planned_anew_is_kept_for_the_next_attempt(tmp_path):
    replans = [Replan(32, packs=((3, 9), (11, 12))), Replan(16, float32=True, records=(4, 7))]
    attempt(tmp_path, [0]).remember_replans(replans)
    assert attempt(tmp_path, []).replans() == replans
    assert attempt(tmp_path, [], token_budget=1).replans() == []


def test_packs_that_were_planned_anew_belong_to_their_plan(tmp_path):
    attempt(tmp_path, [0]).remember_replans([Replan(32, packs=((3, 9),))])
    (tmp_path / "plan.json").unlink()
    assert attempt(tmp_path, [], token_budget=65).replans() == []


def test_an_attempt_that_was_taken_over_does_not_plan_for_its_successor(tmp_path):
    first, second = ShardState(tmp_path), ShardState(tmp_path)
    adopt(second)
    with pytest.raises(Fault, match="superseded"):
        first.remember_replans([Replan(32)])
    assert second.replans() == []


def test_a_commit_with_a_pack_that_is_not_of_the_plan_is_discarded(tmp_path, caplog):
    attempt(tmp_path, range(5))
    state = ShardState(tmp_path)
    adopt(state)
    assert list(state.committed(range(4))) == [0, 1, 2]
    assert "planned otherwise" in caplog.text
    assert len(commits(tmp_path)) == 1


def test_deferred_records_are_known_to_the_next_attempt(tmp_path):
    attempt(tmp_path, range(5))
    assert attempt(tmp_path, []).deferred() == [1000, 1002, 1004]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not be written to"),
    ],
)
def test_what_the_disk_refuses_is_said_in_words_with_the_folder(tmp_path, number, words):
    with pytest.raises(Fault, match=rf"{tmp_path}: .*{words}"), explained(tmp_path):
        raise OSError(number, "as the system says it")


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="gone"), explained(tmp_path):
        raise OSError(errno.EIO, "gone")


def test_a_flipped_bit_of_a_journal_is_told_and_not_counted(tmp_path, caplog):
    attempt(tmp_path, range(3))
    (journal,) = tmp_path.glob("attempt-*")
    journal.write_text(journal.read_text().replace("pack 1 ", "pack 2 "))
    assert attempt(tmp_path, []).attempts()["recomputed_packs"] == 0
    assert f"{journal}: a line is damaged" in caplog.text


def test_a_torn_line_of_a_journal_does_no_harm(tmp_path):
    attempt(tmp_path, range(3))
    (journal,) = tmp_path.glob("attempt-*")
    journal.write_text(journal.read_text() + "pac")
    assert attempt(tmp_path, []).attempts()["recomputed_packs"] == 0


def test_the_owner_is_named_for_people(tmp_path):
    state = ShardState(tmp_path)
    owner = read_json(tmp_path / "owner.json")
    assert owner["token"] == state.claim.token
    write_record(tmp_path / "owner.json", owner | {"token": "other", "pid": 77, "host": "node9"})
    with pytest.raises(Fault, match="superseded by process 77 on node9"):
        state.claim.check()
