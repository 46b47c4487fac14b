// pgx: its statement cache and binary formats, batches (pipelines), simple protocol, COPY, transactions.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var checks int

func check(what string, condition bool) {
	checks++
	if !condition {
		fmt.Fprintln(os.Stderr, "pgx:", what)
		os.Exit(1)
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgx:", err)
		os.Exit(1)
	}
}

func ssn(plain string) string {
	if os.Getenv("MASKED") != "1" {
		return plain
	}
	return strings.Repeat("*", len(plain)-4) + plain[len(plain)-4:]
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, "")
	must(err)
	for round := 0; round < 3; round++ {
		var id int
		var secret string
		must(conn.QueryRow(ctx, "SELECT id, ssn FROM app.people WHERE id = $1", 2).Scan(&id, &secret))
		check("cached statement", id == 2 && secret == ssn("212-09-9923"))
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeCacheDescribe} {
		var secret string
		must(conn.QueryRow(ctx, "SELECT ssn FROM app.people WHERE id = $1", mode, 1).Scan(&secret))
		check(fmt.Sprint("mode ", mode), secret == ssn("531-22-8841"))
	}
	batch := &pgx.Batch{}
	for n := 1; n <= 20; n++ {
		batch.Queue("SELECT label FROM app.numbers WHERE n = $1", n)
	}
	results := conn.SendBatch(ctx, batch)
	for n := 1; n <= 20; n++ {
		var label string
		must(results.QueryRow().Scan(&label))
		check("batch", label == fmt.Sprintf("row %d", n))
	}
	must(results.Close())
	tx, err := conn.Begin(ctx)
	must(err)
	day := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
	_, err = tx.Exec(ctx, "INSERT INTO app.items (id, big, label, active, at, raw, tags, nums, doc) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9)",
		1, int64(1)<<40, "text", true, day, []byte{0, 255}, []string{"a", "b"}, []int32{1, 2}, map[string]int{"a": 1})
	must(err)
	var big int64
	var at time.Time
	var raw []byte
	var tags []string
	must(tx.QueryRow(ctx, "SELECT big, at, raw, tags FROM app.items WHERE id = $1", 1).Scan(&big, &at, &raw, &tags))
	check("types", big == int64(1)<<40 && at.Equal(day) && len(raw) == 2 && raw[1] == 255 && tags[1] == "b")
	must(tx.Rollback(ctx))
	count, err := conn.CopyFrom(ctx, pgx.Identifier{"app", "items"}, []string{"id", "label"}, pgx.CopyFromRows([][]any{{1, "x"}, {2, "y"}}))
	must(err)
	check("copy in", count == 2)
	tag, err := conn.Exec(ctx, "DELETE FROM app.items WHERE id = ANY($1)", []int32{1, 2})
	must(err)
	check("delete", tag.RowsAffected() == 2)
	if os.Getenv("GATED") == "1" {
		for round := 0; round < 2; round++ {
			_, err = conn.Exec(ctx, "DROP TABLE app.items")
			var refusal *pgconn.PgError
			check("the drop is refused", errors.As(err, &refusal) && refusal.Code == "42501" && strings.Contains(refusal.Message, "Sidegate refused"))
			var one int
			must(conn.QueryRow(ctx, "SELECT 1").Scan(&one))
		}
		batch := &pgx.Batch{}
		batch.Queue("SELECT label FROM app.numbers WHERE n = $1", 1)
		batch.Queue("DELETE FROM app.people WHERE $1 = 1", 1)
		batch.Queue("SELECT label FROM app.numbers WHERE n = $1", 2)
		results := conn.SendBatch(ctx, batch)
		var refusal *pgconn.PgError
		err := results.Close()
		check("refused in a batch", errors.As(err, &refusal) && refusal.Code == "42501")
		var label string
		must(conn.QueryRow(ctx, "SELECT label FROM app.numbers WHERE n = $1", 9).Scan(&label))
		check("the connection goes on", label == "row 9")
	}
	must(conn.Close(ctx))
	fmt.Println("ok pgx", checks)
}
