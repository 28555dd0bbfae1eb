// Reads dashboards strictly, by Grafana's own types: an unknown field, a wrong type or a missing one is an error.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// The dashboard with the source of each panel in its queries, too, as Grafana takes it: types of a query follow from it.
func withSources(text []byte) ([]byte, error) {
	var board map[string]any
	if err := json.Unmarshal(text, &board); err != nil {
		return nil, err
	}
	panels, _ := board["panels"].([]any)
	for _, one := range panels {
		panel, _ := one.(map[string]any)
		targets, _ := panel["targets"].([]any)
		for _, each := range targets {
			if target, ok := each.(map[string]any); ok && target["datasource"] == nil {
				target["datasource"] = panel["datasource"]
			}
		}
	}
	return json.Marshal(board)
}

// Errors of the SDK are a list, and an empty one is none.
func said(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func check(path string) string {
	text, err := os.ReadFile(path)
	if err == nil {
		text, err = withSources(text)
	}
	if err != nil {
		return err.Error()
	}
	board := dashboard.Dashboard{}
	if wrong := said(board.UnmarshalJSONStrict(text)); wrong != "" {
		return wrong
	}
	return said(board.Validate())
}

func main() {
	plugins.RegisterDefaultPlugins()
	code := 0
	for _, path := range os.Args[1:] {
		if wrong := check(path); wrong != "" {
			fmt.Fprintf(os.Stderr, "%s: %s\n", path, wrong)
			code = 1
		}
	}
	os.Exit(code)
}
