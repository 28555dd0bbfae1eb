package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Result is one line of `shop probe`. Error is one of "timeout", "refused", "unreachable", "name" (the name did
// not resolve) or the error's own text; Answer is what the server said of itself.
type Result struct {
	Target string          `json:"target"`
	OK     bool            `json:"ok"`
	Millis float64         `json:"ms"`
	Error  string          `json:"error,omitempty"`
	Answer json.RawMessage `json:"answer,omitempty"`
}

const answerLimit = 64 << 10

func millis(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

func reason(err error) string {
	var name *net.DNSError
	var wait net.Error
	switch {
	case errors.As(err, &name):
		return "name"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EPERM):
		return "unreachable"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &wait) && wait.Timeout():
		return "timeout"
	}
	return err.Error()
}

func askHTTP(ctx context.Context, target *url.URL) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, err
	}
	// A connection of its own each time: a kept one would outlive a policy that forbids new ones.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(io.LimitReader(response.Body, answerLimit))
}

// askSocket sends "who" and reads one line (TCP: the greeting) or one datagram.
func askSocket(ctx context.Context, target *url.URL) ([]byte, error) {
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, target.Scheme, target.Host)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	deadline, _ := ctx.Deadline()
	connection.SetDeadline(deadline)
	if _, err := connection.Write([]byte("who\n")); err != nil {
		return nil, err
	}
	if target.Scheme == "udp" {
		buffer := make([]byte, answerLimit)
		n, err := connection.Read(buffer)
		return buffer[:n], err
	}
	line, err := bufio.NewReader(io.LimitReader(connection, answerLimit)).ReadBytes('\n')
	return line, err
}

func ask(target string, timeout time.Duration) Result {
	result := Result{Target: target}
	parsed, err := url.Parse(target)
	if err != nil || parsed.Host == "" {
		result.Error = "not a target: use tcp://HOST:PORT, udp://HOST:PORT or http://HOST:PORT/PATH"
		return result
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	begin := time.Now()
	var answer []byte
	switch parsed.Scheme {
	case "http":
		answer, err = askHTTP(ctx, parsed)
	case "tcp", "udp":
		answer, err = askSocket(ctx, parsed)
	default:
		result.Error = "unknown scheme " + parsed.Scheme
		return result
	}
	result.Millis = millis(begin)
	if err != nil {
		result.Error = reason(err)
		return result
	}
	result.OK = true
	if json.Valid(answer) {
		result.Answer = json.RawMessage(strings.TrimSpace(string(answer)))
	}
	return result
}

// probe exits 0 whatever the targets said: being refused is an answer. Targets may also come on stdin ("-").
func probe(arguments []string) int {
	flags := flag.NewFlagSet("probe", flag.ExitOnError)
	timeout := flags.Duration("timeout", time.Second, "how long each target may take")
	parallel := flags.Int("parallel", 64, "how many targets at once")
	flags.Parse(arguments)
	targets := flags.Args()
	if len(targets) == 1 && targets[0] == "-" {
		targets = nil
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			if line := strings.TrimSpace(lines.Text()); line != "" {
				targets = append(targets, line)
			}
		}
	}
	if len(targets) == 0 || *parallel < 1 {
		return fail("probe: name targets (or - for stdin) and a --parallel of at least 1")
	}
	var all sync.WaitGroup
	turn := make(chan struct{}, *parallel)
	for _, target := range targets {
		all.Add(1)
		turn <- struct{}{}
		go func() {
			defer all.Done()
			print(ask(target, *timeout))
			<-turn
		}()
	}
	all.Wait()
	return 0
}
