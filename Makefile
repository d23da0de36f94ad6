# Every target works alone on a fresh machine: it makes .venv, installs what it needs at the tested versions, and runs.
# Choose the interpreter with `make test PYTHON=python3.12`; run things on your own data with the variables named below.
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2
RACING ?= donkeycar
DROID ?= droid-dataset.github.io
DIFFUSERS ?= diffusers
export OMP_NUM_THREADS ?= 1

.PHONY: demo app test test-slow test-web test-upstream style check docs bench gpu-check train train-tiny-racing train-tiny-carracing train-tiny-driving train-tiny-robot wheel clean

demo: .venv/.demo  ## CLIPS=folder CHECKPOINT=folder choose other clips and another checkpoint; PICTURE_FPS=10 is the rate of pictures
	OMP_NUM_THREADS=$(shell nproc 2>/dev/null || echo 2) $(BIN)/python -m examples.demo $(if $(CLIPS),--clips "$(CLIPS)") $(if $(PICTURE_FPS),--picture-fps $(PICTURE_FPS)) $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

app: .venv/.demo  ## a page to play with, in the browser; CHECKPOINT=folder chooses another checkpoint, PORT=7861 another port
	$(BIN)/mardini app $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(if $(PORT),--port $(PORT))

test: .venv/.dev  ## fast tests; PYTEST="-k pipeline" narrows them
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow and not web" $(PYTEST)

test-slow: .venv/.dev  ## all tests but those in the browser
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not web" $(PYTEST)

test-web: .venv/.dev  ## the page in a real browser; needs Chromium (`apt install chromium`, or CHROMIUM=path)
	$(BIN)/python -m pytest -q -rs -m web pipelines_tests/app $(PYTEST)

test-upstream: .venv/.dev  ## diffusers' own tests on our classes; DIFFUSERS=folder of a checkout of github.com/huggingface/diffusers
	DIFFUSERS_CHECKOUT="$(DIFFUSERS)" $(BIN)/python -m pytest -q -n $(WORKERS) -rs pipelines_tests/upstream $(PYTEST)

style: .venv/.dev  ## formats and repairs what can be repaired
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

check: .venv/.dev  ## lint, format and types; changes nothing
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/.docs  ## the pages of docs/ as a site in build/site; a link to nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

train: .venv/.train  ## a model of own clips and an honest verdict: CLIPS=folder, HOURS=2, OUT=folder, PICTURE_FPS=10 for pictures
	@test -n "$(CLIPS)" || { echo "say where the clips are: make train CLIPS=my_clips HOURS=2"; exit 2; }
	$(BIN)/python -m training.fit "$(CLIPS)" "$(or $(OUT),runs/$(notdir $(patsubst %/,%,$(CLIPS))))" --hours $(or $(HOURS),2) $(if $(PICTURE_FPS),--picture-fps $(PICTURE_FPS))

bench: .venv/.dev  ## speed and memory, as ratios in one run
	$(BIN)/python -m benchmarks.run

gpu-check: .venv/.dev  ## what only a GPU can answer, in eight minutes: OUT=folder, CLIPS=folder with train and val; DRY=1 tries it on any machine
	$(BIN)/python -m benchmarks.gpu.check -o "$(or $(OUT),outputs/gpu)" $(if $(CLIPS),--clips "$(CLIPS)") $(if $(DRY),--dry)

train-tiny-racing: .venv/.dev  ## RACING=folder of a checkout of github.com/criscola/donkeycar; about three and a half hours on 2 cores
	bash training/runs/mardini-tiny-racing.sh "$(RACING)"

train-tiny-carracing: .venv/.dev  ## about 3.5 hours on 2 cores, clips and autoencoder included
	bash training/runs/mardini-tiny-carracing.sh

train-tiny-driving: .venv/.dev  ## goes on from checkpoints/mardini-tiny-carracing; about 1.7 hours on 2 cores, clips included
	bash training/runs/mardini-tiny-driving.sh

train-tiny-robot: .venv/.dev  ## DROID=folder of a checkout of github.com/droid-dataset/droid-dataset.github.io; about two hours on 2 cores
	bash training/runs/mardini-tiny-robot.sh "$(DROID)"

wheel: .venv/.dev  ## dist/*.whl: the package, and the data that its extra `demo` brings
	rm -rf build/lib build/bdist.* demo-files/build
	$(BIN)/python -m build --wheel
	$(BIN)/python -m build --wheel --outdir dist demo-files

clean:  ## build products; never checkpoints or runs
	rm -rf build dist demo-files/build .pytest_cache .ruff_cache src/*.egg-info demo-files/*.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: setup.py constraints.txt | .venv/bin/python
	$(PIP) -e ".[demo]" ./demo-files
	touch $@

.venv/.train: setup.py constraints.txt | .venv/bin/python
	$(PIP) -e ".[train]"
	touch $@

.venv/.dev: setup.py constraints.txt | .venv/bin/python
	$(PIP) -e ".[train,sim,demo,dev]" ./demo-files
	touch $@

.venv/.docs: setup.py constraints.txt | .venv/bin/python
	$(PIP) -e ".[docs]"
	touch $@
