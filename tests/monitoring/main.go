// Reads what Prometheus and Grafana would from a chart's rendered YAML on standard input: the groups of each PrometheusRule, as
// Prometheus loads them, and the queries of each dashboard in a ConfigMap. Prints how many there were, or what is wrong with each.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

type object struct {
	Kind string
	Data map[string]string
	Spec any
}

// Queries stand wherever a panel has them.
func queries(of any, found func(string)) {
	switch value := of.(type) {
	case map[string]any:
		for name, member := range value {
			if text, is := member.(string); is && name == "expr" {
				found(text)
			}
			queries(member, found)
		}
	case []any:
		for _, member := range value {
			queries(member, found)
		}
	}
}

func main() {
	promql := parser.NewParser(parser.Options{})
	rules, asked, wrong := 0, 0, 0
	tell := func(errs ...error) {
		for _, err := range errs {
			wrong++
			fmt.Fprintln(os.Stderr, err)
		}
	}
	documents := yaml.NewDecoder(os.Stdin)
	for {
		var found object
		if err := documents.Decode(&found); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			tell(err)
			break
		}
		switch found.Kind {
		case "PrometheusRule":
			spec, err := yaml.Marshal(found.Spec)
			if err != nil {
				tell(err)
			}
			groups, errs := rulefmt.Parse(spec, false, model.UTF8Validation, promql, slog.Default())
			tell(errs...)
			if groups != nil {
				for _, group := range groups.Groups {
					rules += len(group.Rules)
				}
			}
		case "ConfigMap":
			for name, text := range found.Data {
				if !strings.HasSuffix(name, ".json") {
					continue
				}
				var board any
				if err := json.Unmarshal([]byte(text), &board); err != nil {
					tell(fmt.Errorf("%s: %w", name, err))
				}
				queries(board, func(query string) {
					asked++
					if _, err := promql.ParseExpr(query); err != nil {
						tell(fmt.Errorf("%s: %q: %w", name, query, err))
					}
				})
			}
		}
	}
	fmt.Printf("%d rules, %d queries\n", rules, asked)
	if wrong > 0 {
		os.Exit(1)
	}
}
