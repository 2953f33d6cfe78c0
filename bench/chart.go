package main

import (
	"io"
	"text/template"
	"unicode/utf8"
)

// panel is one bar chart of the picture: horizontal bars from zero, on a linear scale.
type panel struct {
	Title, Note string
	bars        []bar
}

type bar struct {
	name  string
	value float64
	label string
	ours  bool
}

// Measures of the picture, in pixels.
const (
	chartWidth = 860
	nameWidth  = 250 // names end here
	barWidth   = 500 // of the longest bar
	barHeight  = 14
	barStep    = 20
	headHeight = 34
	panelGap   = 22
	margin     = 16
)

// drawn is a picture in numbers.
type drawn struct {
	Width, Height int
	Panels        []drawnPanel
}

type drawnPanel struct {
	Title, Note string
	X, Y        int
	Bars        []drawnBar
}

type drawnBar struct {
	Name, Label, Class  string
	NameX, BarX, LabelX int
	TextY, Y, W, H      int
	Described           string
}

// draw places everything.
func draw(panels []panel) drawn {
	d := drawn{Width: chartWidth}
	y := margin
	for _, p := range panels {
		most := 0.0
		for _, b := range p.bars {
			most = max(most, b.value)
		}
		dp := drawnPanel{Title: p.Title, Note: p.Note, X: margin, Y: y + 16}
		y += headHeight
		for _, b := range p.bars {
			w := 0
			if most > 0 {
				w = max(1, int(b.value/most*barWidth+0.5)) // what is not nothing is seen
			}
			class := "other"
			if b.ours {
				class = "ours"
			}
			dp.Bars = append(dp.Bars, drawnBar{
				Name: b.name, Label: b.label, Class: class, Described: b.name + ": " + b.label,
				NameX: nameWidth, BarX: nameWidth + 8, LabelX: nameWidth + 8 + w + 6,
				Y: y, TextY: y + barHeight - 3, W: w, H: barHeight,
			})
			y += barStep
		}
		y += panelGap
		d.Panels = append(d.Panels, dp)
	}
	d.Height = max(y-panelGap, 0) + margin
	return d
}

// chart is the picture. Its colours follow what the reader's system prefers, and have
// enough contrast on both.
var chart = template.Must(template.New("chart").Funcs(template.FuncMap{"xml": template.HTMLEscapeString}).Parse(`<svg xmlns="http://www.w3.org/2000/svg" width="{{.Width}}" height="{{.Height}}" viewBox="0 0 {{.Width}} {{.Height}}" role="img" aria-label="Bar charts: dagstore beside others">
<style>
  svg { background: #ffffff; }
  text { font: 12px system-ui, sans-serif; fill: #1f2328; }
  .title { font-size: 14px; font-weight: 600; }
  .note { fill: #59636e; }
  .name { text-anchor: end; }
  .ours { fill: #0969da; }
  .other { fill: #9aa4ae; }
  text.ours { fill: #0a57b3; font-weight: 600; }
  text.other { fill: #1f2328; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; }
    text { fill: #f0f6fc; }
    .note { fill: #9198a1; }
    .ours { fill: #4493f8; }
    .other { fill: #656c76; }
    text.ours { fill: #79b8ff; }
    text.other { fill: #f0f6fc; }
  }
</style>
{{- range .Panels}}
<text class="title" x="{{.X}}" y="{{.Y}}">{{xml .Title}} <tspan class="note" font-size="12" font-weight="400">– {{xml .Note}}</tspan></text>
{{- range .Bars}}
<g><title>{{xml .Described}}</title><text class="name {{.Class}}" x="{{.NameX}}" y="{{.TextY}}">{{xml .Name}}</text><rect class="{{.Class}}" x="{{.BarX}}" y="{{.Y}}" width="{{.W}}" height="{{.H}}"/><text x="{{.LabelX}}" y="{{.TextY}}">{{xml .Label}}</text></g>
{{- end}}
{{- end}}
</svg>
`))

// maxName is how many characters of a name there is room for.
const maxName = 38

// writeChart writes the chart as SVG.
func (r *report) writeChart(w io.Writer) error {
	panels := r.charted()
	for _, p := range panels {
		for i := range p.bars {
			p.bars[i].name = shortened(p.bars[i].name)
		}
	}
	return chart.Execute(w, draw(panels))
}

func shortened(name string) string {
	if utf8.RuneCountInString(name) <= maxName {
		return name
	}
	return string([]rune(name)[:maxName-1]) + "…"
}
