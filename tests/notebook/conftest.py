import gzip
from pathlib import Path

import pytest

import packedesm


@pytest.fixture(scope="session")
def demo() -> packedesm.EmbeddingModel:
    """The model that ships with the package, on the CPU; nobody changes it."""
    return packedesm.load_model(device="cpu", check=False)


@pytest.fixture(scope="session")
def sixty(uniprot_500, tmp_path_factory) -> Path:
    """Sixty records of UniProt: 57 spread over the lengths up to 700, and three that repeat some.

    Of the repeats one is in lower case, and one has the id of the first too.
    """
    text = gzip.decompress(uniprot_500.read_bytes()).decode()
    records = [record.partition("\n") for record in text[1:].split("\n>")]
    records = [(head, body.replace("\n", "")) for head, _, body in records]
    by_length = sorted((r for r in records if len(r[1]) <= 700), key=lambda r: len(r[1]))
    spread = [by_length[i * (len(by_length) - 1) // 56] for i in range(57)]
    assert len({sequence for _, sequence in spread}) == 57
    spread.insert(20, ("again", spread[3][1].lower()))
    spread.insert(40, spread[30])
    spread.append(("once_more", spread[3][1]))
    path = tmp_path_factory.mktemp("sixty") / "sixty.fasta"
    path.write_text("".join(f">{head}\n{sequence}\n" for head, sequence in spread))
    return path
