"""Lists that begin with a negative number are values, as a number alone is."""

import pytest

import packedesm
from packedesm.cli import main
from packedesm.commands.parser import Parser


@pytest.mark.parametrize("text", ["-1,0", "-2,last", "-1", "0,-1", "-1, 0", "last"])
@pytest.mark.parametrize("flag", ["--layers", "--lay"])
def test_a_list_of_layers_may_begin_at_the_end(flag, text):
    parser = Parser()
    command = parser.add_subparsers().add_parser("embed")
    command.add_argument("fasta", nargs="*")
    command.add_argument("--layers")
    for arguments in ([flag, text, "x.fa"], ["x.fa", flag, text], [f"{flag}={text}", "x.fa"]):
        found = parser.parse_args(["embed", *arguments])
        assert (found.layers, found.fasta) == (text, ["x.fa"])
    assert parser.parse_args(["embed", "--", "--layers", "-1,0"]).fasta == ["--layers", "-1,0"]


def test_so_does_one_of_a_run(tmp_path, checkpoints):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMKTAYIAKQR\n")
    arguments = ["embed", str(fasta), "-o", str(tmp_path / "out"), "--layers", "-1,0"]
    assert main([*arguments, "--checkpoints", str(checkpoints)]) == 0
    assert set(packedesm.open(tmp_path / "out").arrays) == {"mean", "mean.layer0"}
