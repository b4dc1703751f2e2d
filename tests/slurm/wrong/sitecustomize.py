"""A device that computes wrong: Python runs this first where its folder is on PYTHONPATH.

In the process that embeds a shard, one layer of the model is off by a hundredth.
"""

import sys

if any(argument.endswith(".embed.py") for argument in sys.orig_argv):
    from packedesm.esm2.model import PackedESM2

    read = PackedESM2.from_fair_esm.__func__

    def off(cls, *arguments):
        model = read(cls, *arguments)
        model.layers[1].fc2.weight.data.mul_(1.01)
        return model

    PackedESM2.from_fair_esm = classmethod(off)
