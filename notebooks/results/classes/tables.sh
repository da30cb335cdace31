#!/bin/bash
# Makes the tables and the figure of "Classes, shards and BLIP" in a new folder: renders the data, trains a
# BLIP, and runs every method. Finished runs are reused. About an hour and a half on one core.
set -e
clip=$(python -c 'from erase_sd.mini import WEIGHTS; print(WEIGHTS / "clip")')
for_blip="cliperase ga graddiff kl npo emmn lipschitz multidelete"
all="cliperase-anchored cliperase-hardened hirm projection $for_blip"
grid="erase-sd compare --seeds 1 --skip-images"

[ -d cifar100 ] || python -m erase_sd.mini.training.datasets cifar100 cifar100
[ -d cc12m ] || python -m erase_sd.mini.training.datasets cc12m cc12m --pairs 20000
[ -d blip ] || python -m erase_sd.mini.training.blip blip

$grid --concepts elephant bicycle chair --methods $all --clip "$clip" --data cifar100 --out clip
$grid --concepts woman --methods $all --clip "$clip" --data cc12m --out shards
$grid --concepts elephant --methods $for_blip --clip blip --data cifar100 --out blip-table

# 3, 10, 20 and 30 of the 100 classes in one run, the first of one random order. No laptops: the name of an
# "apple laptop" contains another class's.
mapfile -t sets < <(python - <<'PYTHON'
import pathlib
import random

lines = pathlib.Path("cifar100/fine_label_names.txt").read_text().split()
names = [line.replace("_", " ") for line in lines if "laptop" not in line]
order = random.Random(0).sample(names, 30)
print(*("+".join(order[:count]) for count in (3, 10, 20, 30)), sep="\n")
PYTHON
)
$grid --concepts "${sets[@]}" --methods cliperase-anchored cliperase graddiff --clip "$clip" --data cifar100 --out figure3
