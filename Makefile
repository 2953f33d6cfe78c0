# A bare `make` prints the targets. TIME, COUNT and PKG change what some of them do:
# make bench PKG=./index COUNT=10, make fuzz TIME=5m PKG=./internal/carscan

PKG   ?= ./...
TIME  ?= 20s
COUNT ?= 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## compile everything
	go build ./... ./testdata

.PHONY: test
test: ## all tests
	go test $(PKG)

.PHONY: race
race: ## all tests with the race detector, long ones shortened
	go test -race -short $(PKG)

.PHONY: bench
bench: ## benchmarks (COUNT=10 for benchstat)
	go test -run '^$$' -bench . -benchmem -count $(COUNT) -timeout 0 $(PKG)

.PHONY: compare
compare: ## measure beside others and write docs/BENCH.md and docs/bench.svg (some 15 minutes)
	go -C bench run . -out ../docs

.PHONY: fuzz
fuzz: ## every fuzz target for TIME each
	.ci/fuzz $(TIME) $(PKG)

.PHONY: soak
soak: ## simulation, crash points and kills with new seeds, until one fails or you stop it
	.ci/soak $(PKG)

.PHONY: planted
planted: ## plant every known bug, one at a time, and see that the tests find it
	go run ./internal/planted/hunt

.PHONY: planted-write
planted-write: ## the same, and write what found them into docs/TESTING.md
	go run ./internal/planted/hunt -write

.PHONY: cover
cover: ## statement coverage by function, into cover.out
	go test -coverpkg ./... -coverprofile cover.out $(PKG)
	go tool cover -func cover.out | tail -n 40

.PHONY: fmt
fmt: ## format the code
	go tool -modfile=tools/go.mod gofumpt -w $$(git ls-files --cached --others --exclude-standard '*.go')

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@files=$$(gofmt -l .); test -z "$$files" || { echo "not formatted; run make fmt:"; echo "$$files"; exit 1; }
	go vet ./... ./testdata
	go tool -modfile=tools/go.mod staticcheck ./... ./testdata

.PHONY: docs
docs: ## write docs/MACHINE.md from the table, docs/GUARANTEES.md from the tests' comments, the tables of docs/SCALE.md
	go test ./fsm -run Golden -rewrite
	go run ./internal/guarantees -write
	go run ./internal/scale -write

.PHONY: gen
gen: docs ## write everything that is generated: docs and the CARs of testdata
	go run ./internal/gentestdata

.PHONY: quickstart
quickstart: ## run the example
	go run ./examples/quickstart

.PHONY: ci
ci: ## what runs before a change lands
	.ci/run
