# A bare `make` prints the targets. TIME, COUNT and PKG change what some of them do:
# make bench PKG=./index COUNT=10, make fuzz TIME=5m PKG=./internal/carscan

PKG   ?= ./...
TIME  ?= 20s
COUNT ?= 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

.PHONY: fuzz
fuzz: ## every fuzz target for TIME each
	.ci/fuzz $(TIME) $(PKG)

.PHONY: soak
soak: ## simulation with new seeds, kills, crash and model tests, until one fails or you stop it
	@n=0; while \
	  go test -count 1 -timeout 0 -run 'TestSim$$' . -args -sim.first $$((1000 + 10000*n)) -sim.ops 3000000 && \
	  go test -count 1 -timeout 0 -run 'TestKill$$' . -args -kill.cycles 100 && \
	  go test -count 1 -timeout 0 -run 'Crash|Model|Stress|Random|Property|Fault' $(PKG); \
	do n=$$((n+1)); echo "round $$n passed"; done; exit 1

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
docs: ## write docs/MACHINE.md from the table and docs/GUARANTEES.md from the tests' comments
	go test ./fsm -run Golden -rewrite
	go run ./internal/guarantees -write

.PHONY: gen
gen: docs ## write everything that is generated: docs and the CARs of testdata
	go run ./internal/gentestdata

.PHONY: quickstart
quickstart: ## run the example
	go run ./examples/quickstart

.PHONY: ci
ci: ## what runs before a change lands
	.ci/run
