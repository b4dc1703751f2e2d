"""Training of the small checkpoint: what is hidden, that it learns, that it can be resumed."""

import numpy as np
import pytest
import torch
from corpus import Entry, HeldOut, hold_out, read_entries, read_held_out, write_held_out
from masking import STANDARD, mask
from neighbours import agreement, chance, family, nearest
from perplexity import Counts, perplexities
from training import Crops, Recipe, Trainer, train

from packedesm.alphabet import CLS, EOS, MASK, encode
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.tensor_files import load_archive

TOY = Recipe(
    layers=2,
    width=32,
    heads=2,
    crop=30,
    token_budget=256,
    steps=30,
    warmup=5,
    decay=10,
    learning_rate=1e-2,
    dtype="float32",
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy_sequences(count: int = 40, length: int = 50) -> list[bytes]:
    """Proteins of one repeated word, so that a neighbour tells what is hidden."""
    word = b"MKTAYIAKQR"
    return [(word * 6)[start % 10 : start % 10 + length] for start in range(count)]


def toy_batch(sequences: list[bytes]):
    return Crops(sequences, TOY)[0]


def random_sequences(count: int, length: int) -> list[bytes]:
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWYXBZ", np.uint8)
    drawn = np.random.default_rng(0).choice(letters, (count, length))
    return [row.tobytes() for row in drawn]


def test_masking_asks_for_15_percent_and_hides_80_swaps_10_keeps_10():
    recipe = Recipe(crop=1000, token_budget=100_000)
    batch = Crops(random_sequences(80, 1000), recipe)[0]
    task = mask(batch, np.random.default_rng(1))
    shown = task.batch.input_ids[task.places]
    standard = np.isin(batch.input_ids, STANDARD).sum()
    hidden = (shown == MASK).sum().item() / len(shown)
    kept = (shown == task.answers).sum().item() / len(shown)
    # 4 standard errors at about 10,000 places; a swap meets the same residue in 1 of 20 cases.
    assert len(task.places) / standard == pytest.approx(0.15, abs=0.006)
    assert hidden == pytest.approx(0.8, abs=0.016)
    assert kept == pytest.approx(0.1 + 0.1 / 20, abs=0.013)


def test_masking_touches_standard_residues_only():
    batch = Crops(random_sequences(40, 100), Recipe(token_budget=5000))[0]
    task = mask(batch, np.random.default_rng(1), masked=0.0, swapped=1.0)
    assert set(task.answers.tolist()) == set(STANDARD.tolist())
    assert set(task.batch.input_ids[task.places].tolist()) == set(STANDARD.tolist())
    elsewhere = np.ones(len(batch.input_ids), bool)
    elsewhere[task.places] = False
    assert torch.equal(task.batch.input_ids[elsewhere], batch.input_ids[elsewhere])
    assert {CLS, EOS, *encode(b"XBZ").tolist()} <= set(batch.input_ids[elsewhere].tolist())


def test_the_batch_that_is_masked_stays_as_it_is():
    batch = toy_batch(toy_sequences())
    before = batch.input_ids.clone()
    task = mask(batch, np.random.default_rng(1))
    assert torch.equal(batch.input_ids, before)
    assert torch.equal(task.answers, before[task.places])


def test_an_epoch_shows_every_protein_once_as_a_crop():
    sequences = random_sequences(25, 50) + random_sequences(15, 20)
    crops = Crops(sequences, TOY)
    packs = [crops[0]]
    while sum(len(pack.rows) for pack in packs) < len(sequences):
        packs.append(crops[len(packs)])
    assert sorted(np.concatenate([pack.rows for pack in packs])) == list(range(40))
    assert max(len(pack.input_ids) for pack in packs) <= TOY.token_budget
    for pack in packs:
        for row, ids in zip(pack.rows, pack.input_ids.split(list(pack.lengths)), strict=True):
            crop = bytes(ids[1:-1].to(torch.uint8).tolist())
            assert len(crop) == min(len(sequences[row]), TOY.crop)
            assert crop in encode(sequences[row]).tobytes()


def test_crops_of_a_later_epoch_begin_elsewhere():
    sequences = random_sequences(7, 300)
    crops = Crops(sequences, TOY)
    first = torch.cat(list(crops[0].input_ids.split(32)))
    second = torch.cat(list(crops[1].input_ids.split(32)))
    assert sorted(first.tolist()) != sorted(second.tolist())


def test_the_rate_rises_stays_and_falls():
    recipe = Recipe(steps=100, warmup=10, decay=20, learning_rate=1.0)
    assert [recipe.rate(step) for step in (0, 9, 10, 79)] == [0.1, 1, 1, 1]
    assert recipe.rate(90) == 0.5
    assert 0 < recipe.rate(99) <= 0.05


def test_training_learns_what_a_neighbour_tells():
    trainer = Trainer(TOY, toy_sequences(), torch.device("cpu"))
    losses = [trainer.take_step() for _ in range(TOY.steps)]
    assert np.mean(losses[:3]) > 2.0  # seven residues, not yet told apart
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, dtype):
    recipe = Recipe(**{**vars(TOY), "steps": 12, "dtype": dtype})
    sequences, cpu = toy_sequences(), torch.device("cpu")
    whole = Trainer(recipe, sequences, cpu)
    train(whole, tmp_path / "whole", tmp_path / "whole.pt", save_every=100)

    interrupted = Trainer(recipe, sequences, cpu)
    for _ in range(7):
        interrupted.take_step()
    torch.save(interrupted.state(), tmp_path / "state")
    resumed = Trainer(recipe, sequences, cpu)
    resumed.load(torch.load(tmp_path / "state", weights_only=True))
    train(resumed, tmp_path / "state", tmp_path / "resumed.pt", save_every=2)

    assert (tmp_path / "resumed.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert (resumed.step, resumed.tokens) == (whole.step, whole.tokens)


def test_a_run_is_not_resumed_with_another_recipe():
    cpu = torch.device("cpu")
    state = Trainer(TOY, toy_sequences(), cpu).state()
    other = Trainer(Recipe(**{**vars(TOY), "seed": 2}), toy_sequences(), cpu)
    with pytest.raises(ValueError, match="another recipe"):
        other.load(state)


def test_an_exported_checkpoint_holds_the_trained_weights_as_float16(tmp_path):
    trainer = Trainer(TOY, toy_sequences(), torch.device("cpu"))
    trainer.take_step()
    trainer.export(tmp_path / "toy.pt")
    geometry, state = load_state(tmp_path / "toy.pt")
    assert geometry == TOY.geometry
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    read = PackedESM2.from_fair_esm(state, geometry).state_dict()
    for name, trained in trainer.encoder.state_dict().items():
        expected = trained.half().float() if trained.is_floating_point() else trained
        assert torch.equal(read[name], expected), name


def test_the_head_gives_the_logits_of_fair_esm(tmp_path):
    import esm

    trainer = Trainer(TOY, toy_sequences(), torch.device("cpu"))
    for _ in range(3):
        trainer.take_step()
    path = tmp_path / "toy.pt"
    trainer.export(path)
    archive = load_archive(path)
    with pytest.warns(UserWarning, match="Regression weights"):
        reference, alphabet = esm.pretrained.load_model_and_alphabet_core("esm2", archive)
    tokens = alphabet.get_batch_converter()([("", "MK<mask>AYIAKQRMKT")])[2]
    with torch.inference_mode():
        expected = reference.eval()(tokens)["logits"][0]
        geometry, state = load_state(path)
        encoder = PackedESM2.from_fair_esm(state, geometry)
        head = LanguageModelHead.from_fair_esm(archive["model"])
        length = tokens.shape[1]
        hidden = encoder.forward_packed(
            tokens[0], torch.arange(length), torch.tensor([0, length], dtype=torch.int32), length
        )
        found = head(hidden, encoder.embed_tokens.weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_fair_esm():
    import esm

    trainer = Trainer(TOY, toy_sequences(), torch.device("cpu"))
    state = trainer.encoder.fair_esm_state()
    reference = esm.ESM2(TOY.layers, TOY.width, TOY.heads)
    reference.load_state_dict(state, strict=False)
    ids = torch.tensor([[CLS, 5, 6, MASK, 8, 9, EOS]])
    target = torch.randn(ids.shape[1], TOY.width, generator=torch.Generator().manual_seed(0))
    expected = reference(ids, repr_layers=[TOY.layers])["representations"][TOY.layers][0]
    (expected * target).sum().backward()
    found = trainer.encoder.forward_packed(
        ids[0], torch.arange(7), torch.tensor([0, 7], dtype=torch.int32), 7
    )
    (found * target).sum().backward()
    for name in ("layers.0.fc1.weight", "layers.0.self_attn.out_proj.weight"):
        ours = name.replace("self_attn.out_proj", "attention_out")
        gradient = trainer.encoder.get_parameter(ours).grad
        expected = reference.get_parameter(name).grad
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_whole_clusters_are_held_out(tmp_path):
    clusters = {f"P{i}": f"C{i // 4}" for i in range(400)}
    held_out = hold_out(clusters, share=0.05, seed=1)
    assert len(held_out) == 20
    for name in set(held_out.values()):
        assert sum(cluster == name for cluster in held_out.values()) == 4
    assert hold_out(clusters, share=0.05, seed=1) == held_out != hold_out(clusters, 0.05, seed=2)
    relatives = dict.fromkeys(held_out, "none")
    write_held_out(tmp_path / "held_out.tsv", held_out, relatives)
    read = read_held_out(tmp_path / "held_out.tsv")
    assert read == {name: HeldOut(held_out[name], "none") for name in held_out}


def test_a_cluster_that_is_too_large_is_passed_over():
    clusters = {f"P{i}": "large" if i < 300 else f"C{i}" for i in range(400)}
    assert "large" not in hold_out(clusters, share=0.05, seed=1).values()


def test_entries_hold_accession_and_name_and_no_sequence_twice(tmp_path):
    fasta = tmp_path / "some.fasta"
    fasta.write_text(
        ">sp|P1|A_B DNA ligase (EC 6.5.1.2) OS=Some thing GN=x PE=1 SV=1\nMKT\n"
        ">tr|P2|C_D Same again OS=Other\nMKT\n>tr|P3|E_F GN=y\nMKV\n"
    )
    assert read_entries(fasta) == [
        Entry("P1", "DNA ligase (EC 6.5.1.2)", b"MKT"),
        Entry("P3", "GN=y", b"MKV"),
    ]


def test_names_of_one_family_become_equal():
    assert family("Probable DNA ligase (EC 6.5.1.2)") == family("DNA ligase") == "dna ligase"
    assert family("ATP synthase epsilon chain, chloroplastic") == "atp synthase epsilon chain"
    assert family("2,3-bisphosphoglycerate mutase") == "2,3-bisphosphoglycerate mutase"
    assert family("Putative uncharacterized protein (Fragment)") is None


def test_counts_give_the_frequencies_of_a_literal_case():
    # Three A after <cls>, A twice and K once after A; 441 pairs counted once more.
    counts = Counts([b"AAK", b"A", b"A"])
    a, k = encode(b"AK").astype(int)
    losses = counts.losses(np.array([a, CLS]), np.array([k, a]))
    assert np.exp(-losses["bigram"]) == pytest.approx([2 / 22, 4 / 23])
    assert losses["unigram"][1] < losses["unigram"][0]


def test_perplexity_of_even_guesses_is_their_number():
    losses = {"model": np.full(100, np.log(10.0)), "even": np.full(100, np.log(20.0))}
    result = perplexities(losses, np.arange(100) // 10, seed=1)["even"]
    assert result["perplexity"] == pytest.approx(20)
    assert result["interval"] == pytest.approx([20, 20])
    assert result["model_over_it"] == pytest.approx(0.5)
    assert result["model_over_it_interval"] == pytest.approx([0.5, 0.5])


def test_the_interval_of_perplexity_comes_from_clusters():
    # Two clusters, easy and hard: residues are many, but what differs are two proteins.
    losses = {"model": np.repeat(np.log([5.0, 20.0]), 1000)}
    result = perplexities(losses, np.repeat(["easy", "hard"], 1000), seed=1)["model"]
    assert result["interval"] == pytest.approx([5, 20])


def test_nearest_is_by_angle_and_never_the_row_itself():
    rows = np.array([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [0.1, 5.0]])
    assert nearest(rows, centred=False).tolist() == [1, 0, 3, 2]
    labels = np.array(["a", "a", "b", "c"])
    assert agreement(rows, labels, centred=False) == 1.0  # b and c cannot be found
    assert chance(labels) == pytest.approx(1 / 3)
