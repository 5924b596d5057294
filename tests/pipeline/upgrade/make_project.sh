#!/usr/bin/env bash
# How project.bundle and storage.tar.xz were made: a project in use, of the version before the stages were reorganized, made with
# that version's own code. Run it only to make them again:
#
#     tests/pipeline/upgrade/make_project.sh
#
# in a clone that has the commit below, with the environment that `make setup` makes first on PATH. Two minutes on two cores.
# The first commit is that version without its tests, documents and benchmarks, which no command of a project reads.
#
#     main    a teacher trained here and a convnext; three drops, two releases, the second one pinned; choices in all the places
#             where that version had them: conf/config.yaml, an option's file, and params.yaml (`crt compose KEY=VALUE`)
#     taught  the same project with the first release as its teacher and nothing else pinned: what a pinned teacher looks like
#
# storage.tar.xz is the project's DVC remote: data, models, certificates of all its commits.
set -euo pipefail
VERSION=f11d2c4
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DVC_NO_ANALYTICS=1 OMP_NUM_THREADS=1 PYTHONPATH=$work/project # so that `crt` is the old one
export GIT_AUTHOR_NAME=team GIT_AUTHOR_EMAIL=team@example.org GIT_COMMITTER_NAME=team GIT_COMMITTER_EMAIL=team@example.org

mkdir "$work/project" "$work/storage"
git -C "$here/../../.." archive $VERSION -- . ':!tests' ':!docs' ':!benchmarks' | tar x -C "$work/project"
cd "$work/project"
git init -q -b main
git config merge.crt.driver "crt merge-driver %O %A %B %P"
git config user.name team && git config user.email team@example.org # for `crt release`
git add -A && git commit -qm "The project that this one was made from"

# The data: two of the sample's three drops. The third one comes later.
dvc remote add -q -d storage ../storage # beside the repository
dvc pull -q data.dvc
cp -r data/train/2025-03 "$work/delivery"
crt drop-data 2025-03

# The choices. Everything is small: a few seconds of training, a few kB of weights.
sed -i -e 's/^  - student: resnet/  - student: convnext/' -e 's/^seed: 0/seed: 3/' -e 's/^sigma: 0.25 /sigma: 0.3  /' \
    -e 's/^  margin: 0.02 /  margin: 0.9  /' -e 's/^  acr_margin: 0.01 /  acr_margin: 0.5  /' conf/config.yaml
sed -i -e 's/^arch: cifar_resnet20/arch: resnet18/' \
    -e 's/^arch_args: {}/arch_args: {layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}/' conf/teacher/consistency.yaml
CHOSEN=(+experiment=smoke teacher.epochs=40 student.epochs=30 student.init_epochs=8 "networks.convnext.arch_args.dims=[16,16,16,32]"
    student.batch_size=64 certify.n0=20 certify.n=200 certify.max_images=40 "certify.radii=[0.0,0.25,0.5,0.75]")
crt compose "${CHOSEN[@]}"
dvc repro -q
git add -A && git commit -qm "First student"
crt release

crt ingest "$work/delivery" --drop 2025-03
dvc repro -q
git add -A && git commit -qm "Drop 2025-03"
crt release

git checkout -q -b taught
crt pin v1.0.0
sed -i '/init:/s/:.*/: null/' conf/pinned.yaml
crt compose "${CHOSEN[@]}" teacher=released
dvc repro -q
git add -A && git commit -qm "The first release teaches"
dvc push -q

git checkout -q main && dvc checkout -q
crt pin latest
dvc repro -q
git add -A && git commit -qm "Compared with v1.1.0"
dvc push -q
test -z "$(git status --porcelain)"
dvc status | grep "up to date"

git bundle create -q "$here/project.bundle" main taught --tags
tar cJf "$here/storage.tar.xz" --owner=0 --group=0 --sort=name -C "$work" storage
ls -l "$here"
