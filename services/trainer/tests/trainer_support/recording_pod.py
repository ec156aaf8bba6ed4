"""The process of a TrainJob's pod that records which windows of the dataset it reads: one line a batch."""

import json
import os
import sys
import time
from pathlib import Path

from gpt2_trainer.training.data import TrainingData
from gpt2_trainer.trainjobs.pod import main

FILE = Path(os.environ["RECORDED_BATCHES"])
read_batch, read_window, windows = TrainingData.batch, TrainingData._window, []


def window(data, epoch, number):
    windows.append([epoch, number])
    return read_window(data, epoch, number)


def batch(data, step, chosen_rows=None):
    windows.clear()
    result = read_batch(data, step, chosen_rows)
    rows = range(len(windows)) if chosen_rows is None else chosen_rows.tolist()
    with FILE.open("a") as file:
        file.write(json.dumps({"time": time.time(), "step": step, "rows": list(rows), "windows": windows}) + "\n")
    return result


TrainingData.batch, TrainingData._window = batch, window

if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    if status := main():
        sys.stdout.flush()
        os._exit(status)
