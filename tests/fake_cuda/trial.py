"""The process that tries a made-up GPU: as `packedesm.device.trial`, with what it would find."""

import json
import os
import sys
import time

if __name__ == "__main__":
    fault = json.loads(os.environ["MADE_UP_FAULTS"]).get(os.environ["CUDA_VISIBLE_DEVICES"])
    if fault == "hangs":
        time.sleep(60)
    if fault == "dies":
        os.abort()
    if fault is not None:
        print(fault)
        sys.exit(1)
