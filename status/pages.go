package status

import (
	"bytes"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/dagstore/dagstore"
	"github.com/dagstore/dagstore/fsm"
	"github.com/dagstore/dagstore/shard"
)

// shardJSON is a shard in a list.
type shardJSON struct {
	Key        shard.Key `json:"key"`
	State      string    `json:"state"`
	Error      string    `json:"error,omitempty"`
	URL        string    `json:"url"`
	Lazy       bool      `json:"lazy,omitempty"`
	Blocks     uint64    `json:"blocks,omitempty"`
	SourceSize uint64    `json:"sourceSize,omitempty"`
	Seq        uint64    `json:"seq"`
	Changed    time.Time `json:"changed"`
}

// maxPage bounds a page of shards.
const maxPage = 1000

func (h *handler) shards(w http.ResponseWriter, r *http.Request) error {
	opts, err := listOptions(r)
	if err != nil {
		return err
	}
	c, err := h.consistency(r)
	if err != nil {
		return err
	}
	if _, ok := c.AsOfPosition(); ok {
		return badRequest("a list of shards shows the present: any, latest, within, at-least or at-least-seq")
	}
	if _, err := h.store.WaitFor(r.Context(), dagstore.CatalogueView, c); err != nil {
		return err
	}
	page, err := h.store.ListShards(opts)
	if err != nil {
		return err
	}
	out := struct {
		Shards []shardJSON `json:"shards"`
		Next   string      `json:"next,omitempty"`
	}{Shards: make([]shardJSON, 0, len(page.Shards)), Next: page.Next}
	for _, s := range page.Shards {
		out.Shards = append(out.Shards, shardJSON{
			Key: s.Key, State: s.State.String(), Error: s.Error, URL: s.URL, Lazy: s.Lazy,
			Blocks: s.Blocks, SourceSize: s.SourceSize, Seq: s.Seq, Changed: s.Changed.UTC(),
		})
	}
	shows(w, page.Freshness)
	return answer(w, http.StatusOK, out)
}

// listOptions reads what page of shards is asked for.
func listOptions(r *http.Request) (opts dagstore.ListOptions, err error) {
	said := map[string]string{}
	for _, name := range []string{"prefix", "state", "limit", "cursor"} {
		if said[name], err = param(r, name); err != nil {
			return opts, err
		}
	}
	opts.Prefix, opts.Cursor, opts.Limit = said["prefix"], said["cursor"], 100
	if s := said["limit"]; s != "" {
		if opts.Limit, err = strconv.Atoi(s); err != nil || opts.Limit < 1 || opts.Limit > maxPage {
			return opts, badRequest("limit %.20q is not a number from 1 to %d", s, maxPage)
		}
	}
	if s := said["state"]; s != "" {
		state, ok := stateNamed(s)
		if !ok {
			return opts, badRequest("state %.40q is none of new, initializing, available, serving, recovering, errored", s)
		}
		opts.States = []dagstore.ShardState{state}
	}
	return opts, nil
}

func stateNamed(name string) (dagstore.ShardState, bool) {
	for _, s := range []dagstore.ShardState{
		dagstore.ShardStateNew, dagstore.ShardStateInitializing, dagstore.ShardStateAvailable,
		dagstore.ShardStateServing, dagstore.ShardStateRecovering, dagstore.ShardStateErrored,
	} {
		if strings.EqualFold(strings.TrimPrefix(s.String(), "ShardState"), name) {
			return s, true
		}
	}
	return 0, false
}

// keyParam reads the key that a question is about.
func keyParam(r *http.Request) (shard.Key, error) {
	s, err := param(r, "key")
	if err != nil {
		return shard.Key{}, err
	}
	k := shard.KeyFromString(s)
	if err := k.Validate(); err != nil {
		return k, badRequest("key: %v", err)
	}
	return k, nil
}

func (h *handler) history(w http.ResponseWriter, r *http.Request) error {
	k, err := keyParam(r)
	if err != nil {
		return err
	}
	hist, err := h.store.History(r.Context(), k)
	if err != nil {
		return err
	}
	w.Header().Set("Dagstore-Position", hist.AsOf.Token())
	return answer(w, http.StatusOK, hist)
}

func (h *handler) explain(w http.ResponseWriter, r *http.Request) error {
	var x interface{ String() string }
	said, err := param(r, "cid")
	switch {
	case err != nil:
		return err
	case said != "":
		c, err := cid.Decode(said)
		if err != nil {
			return badRequest("cid %.120q cannot be read", said)
		}
		if x, err = h.store.ExplainCID(r.Context(), c); err != nil {
			return err
		}
	default:
		k, err := keyParam(r)
		if err != nil {
			return err
		}
		if x, err = h.store.Explain(k); err != nil {
			return err
		}
	}
	if strings.HasPrefix(r.Header.Get("Accept"), "text/plain") {
		return text(w, "text/plain", x.String())
	}
	return answer(w, http.StatusOK, x)
}

func (h *handler) find(w http.ResponseWriter, r *http.Request) error {
	hash, err := hashParam(r)
	if err != nil {
		return err
	}
	c, err := h.consistency(r)
	if err != nil {
		return err
	}
	if _, ok := c.AsOfPosition(); ok {
		return badRequest("where a block was is not kept: any, latest, within, at-least or at-least-seq")
	}
	keys, f, err := h.store.FindShards(r.Context(), hash, c)
	if errors.Is(err, dagstore.ErrNotFresh) {
		return &unknownYet{err} // nobody shall take it for "in no shard"
	}
	if err != nil {
		return err
	}
	out := struct {
		Multihash string                 `json:"multihash"`
		Shards    []shard.Key            `json:"shards"`
		Away      []awayJSON             `json:"away,omitempty"`
		Freshness dagstore.FreshnessJSON `json:"freshness"`
	}{Multihash: hash.B58String(), Shards: keys, Freshness: dagstore.FreshnessAsJSON(f)}
	// Who gets an answer is told besides which others hold the block and cannot serve now.
	by, err := h.store.FindHolders(r.Context(), hash, dagstore.Any())
	if err != nil && !errors.Is(err, dagstore.ErrNotFresh) {
		return err
	}
	for _, u := range by.Away {
		out.Away = append(out.Away, asAway(u))
	}
	shows(w, f)
	return answer(w, http.StatusOK, out)
}

// awayJSON is a shard that holds a block and cannot serve now.
type awayJSON struct {
	Key    shard.Key `json:"key"`
	State  string    `json:"state"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	// RetryAfter is missing if it does not pass by itself.
	RetryAfter float64 `json:"retryAfterSeconds,omitempty"`
}

func asAway(u dagstore.UnavailableShard) awayJSON {
	a := awayJSON{Key: u.Key, State: u.State.String(), Since: u.Since.UTC(), RetryAfter: u.RetryAfter.Seconds()}
	if u.Reason != nil {
		a.Reason = u.Reason.Error()
	}
	return a
}

// hashParam reads which block is asked for.
func hashParam(r *http.Request) (mh.Multihash, error) {
	byCID, err := param(r, "cid")
	if err != nil {
		return nil, err
	}
	byHash, err := param(r, "multihash")
	switch {
	case err != nil:
		return nil, err
	case (byCID == "") == (byHash == ""):
		return nil, badRequest("give a cid or a multihash")
	case byCID != "":
		c, err := cid.Decode(byCID)
		if err != nil {
			return nil, badRequest("cid %.120q cannot be read", byCID)
		}
		return c.Hash(), nil
	}
	hash, err := mh.FromB58String(byHash)
	if err != nil {
		if hash, err = mh.FromHexString(byHash); err != nil {
			return nil, badRequest("multihash %.120q is neither base58 nor hexadecimal", byHash)
		}
	}
	return hash, nil
}

func (h *handler) machine(w http.ResponseWriter, r *http.Request) error {
	name, err := param(r, "diagram")
	if err != nil {
		return err
	}
	if name == "" {
		return text(w, "text/markdown", fsm.Markdown())
	}
	d, ok := fsm.Mermaid()[name]
	if !ok {
		return badRequest("there is no diagram %.40q: life, data, index or handle", name)
	}
	return text(w, "text/plain", d)
}

var indexPage = template.Must(template.New("index").Funcs(template.FuncMap{
	"ms":    func(d time.Duration) string { return d.Round(time.Millisecond).String() },
	"plain": plain,
}).Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>dagstore: {{.Health.State}}</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.4rem} table{border-collapse:collapse;width:100%;margin:1rem 0}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ddd} td.n{font-variant-numeric:tabular-nums}
.state{padding:.1rem .5rem;border-radius:.3rem;background:#e6f4e6} .bad{background:#fbe3e0} .err{color:#a22;overflow-wrap:anywhere}
nav a{margin-right:1rem}
</style>
<h1>dagstore{{if .Health.Follower}}, following{{end}}: <span class="state{{if not .Health.Ready}} bad{{end}}">{{.Health.State}}</span></h1>
<p>Since {{.Since}}, at event {{.Health.Head.Seq}}.{{with .Health.Cause}}</p><p class="err">{{plain .}}{{end}}</p>
<table><tr><th>view<th>state<th>event<th>behind<th>for</tr>
{{range .Health.Views}}<tr><td>{{.View}}<td>{{.State}}<td class="n">{{.Applied.Seq}}<td class="n">{{.Lag}}<td class="n">{{ms .LagFor}}</tr>
{{with .Err}}<tr><td><td colspan="4" class="err">{{plain .}}</tr>{{end}}{{end}}</table>
{{with .Health.Refused}}{{if .Count}}<p class="err">The journal refused {{.Count}} appends, the last one at {{.Last.UTC.Format "2006-01-02T15:04:05Z07:00"}}: {{plain .Err}}</p>{{end}}{{end}}
{{if .Health.Follower}}<p>The writer is {{.Health.Writer}}{{if not .Health.WriterSeen.IsZero}}, last heard at {{.Health.WriterSeen.UTC.Format "2006-01-02T15:04:05Z07:00"}}{{end}}.</p>{{end}}
<table><tr><th>shards<th>number</tr>
{{range .Counts}}<tr><td>{{.State}}<td class="n">{{.N}}</tr>
{{else}}<tr><td>none<td class="n">0</tr>{{end}}</table>
{{with .Health.Shards}}{{if or .Errored .Recovering .Away}}<p class="err">Shards that cannot serve: {{.Errored}} errored, {{.Recovering}} being recovered, {{.Away}} whose sources could not be had when they were last asked for.</p>{{end}}{{end}}
<nav><a href="healthz">healthz</a><a href="readyz">readyz</a><a href="freshness">freshness</a><a href="shards">shards</a><a href="shards?state=errored">errored shards</a><a href="machine">machine</a></nav>
</html>
`))

// plain is the text of an error without the control characters that it may bring along:
// the page is read in terminals too.
func plain(err error) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return unicode.ReplacementChar
		}
		return r
	}, err.Error())
}

func (h *handler) index(w http.ResponseWriter, _ *http.Request) error {
	type count struct {
		State string
		N     int
	}
	var counts []count
	health := h.store.Health()
	if health.Live() {
		for s, n := range h.store.Stats() {
			counts = append(counts, count{strings.ToLower(strings.TrimPrefix(s.String(), "ShardState")), n})
		}
	}
	sort.Slice(counts, func(i, k int) bool { return counts[i].State < counts[k].State })
	var b bytes.Buffer
	err := indexPage.Execute(&b, struct {
		Health dagstore.Health
		Since  string
		Counts []count
	}{health, health.Since.UTC().Format(time.RFC3339), counts})
	if err != nil {
		return fmt.Errorf("index page: %w", err)
	}
	return text(w, "text/html", b.String())
}
