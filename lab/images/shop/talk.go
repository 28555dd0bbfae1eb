package main

import (
	"encoding/binary"
	"flag"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Talk is a line of `shop talk`: what its connections did since the line before. Silent counts those that had no echo,
// Longest is the longest time that any has waited for one, also since before.
type Talk struct {
	Began   int64    `json:"began_unix_ms"`
	Flows   int      `json:"flows"`
	Silent  int      `json:"silent"`
	Echoed  int      `json:"echoed"`
	Longest float64  `json:"longest_wait_ms"`
	Broken  []string `json:"broken"`
}

// A talker is one TCP connection that sends a number, waits for its echo, pauses, and goes on.
type talker struct {
	mutex   sync.Mutex
	sent    time.Time // of the message that is waited for; zero: none is
	longest time.Duration
	echoed  int
	broken  string
}

func (t *talker) wait(now time.Time) {
	if !t.sent.IsZero() {
		t.longest = max(t.longest, now.Sub(t.sent))
	}
}

func (t *talker) run(target string, interval time.Duration, connected func()) {
	err := t.talk(target, interval, connected)
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.broken, t.sent = err.Error(), time.Time{}
}

func (t *talker) talk(target string, interval time.Duration, connected func()) error {
	connection, err := net.DialTimeout("tcp", target, 5*time.Second)
	connected()
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := skipGreeting(connection); err != nil {
		return err
	}
	message, echo := make([]byte, 8), make([]byte, 8)
	for number := uint64(1); ; number++ {
		binary.BigEndian.PutUint64(message, number)
		t.mutex.Lock()
		t.sent = time.Now()
		t.mutex.Unlock()
		if _, err := connection.Write(message); err != nil {
			return err
		}
		if _, err := io.ReadFull(connection, echo); err != nil {
			return err
		}
		if string(echo) != string(message) {
			return errNotEchoed
		}
		t.mutex.Lock()
		t.wait(time.Now())
		t.sent, t.echoed = time.Time{}, t.echoed+1
		t.mutex.Unlock()
		time.Sleep(interval)
	}
}

type talkError string

func (e talkError) Error() string { return string(e) }

const errNotEchoed = talkError("another text came back")

// skipGreeting reads the line that `shop serve --tcp` begins with, a byte at a time: what follows it is an echo.
func skipGreeting(connection net.Conn) error {
	connection.SetReadDeadline(time.Now().Add(5 * time.Second))
	defer connection.SetReadDeadline(time.Time{})
	for letter := make([]byte, 1); letter[0] != '\n'; {
		if _, err := io.ReadFull(connection, letter); err != nil {
			return err
		}
	}
	return nil
}

func report(talkers []*talker, began time.Time) Talk {
	line := Talk{Began: began.UnixMilli(), Flows: len(talkers), Broken: []string{}}
	for _, one := range talkers {
		one.mutex.Lock()
		one.wait(time.Now())
		if one.echoed == 0 {
			line.Silent++
		}
		if one.broken != "" {
			line.Broken = append(line.Broken, one.broken)
		}
		line.Echoed += one.echoed
		line.Longest = max(line.Longest, float64(one.longest.Microseconds())/1000)
		one.echoed, one.longest = 0, 0
		one.mutex.Unlock()
	}
	return line
}

// talk holds TCP connections, shared out over the targets, each with a message and its echo in turn, and prints a line
// every --report until the time is up or TERM comes. A connection that ends is not made again.
func talk(arguments []string) int {
	flags := flag.NewFlagSet("talk", flag.ExitOnError)
	flows := flags.Int("flows", 64, "how many connections")
	interval := flags.Duration("interval", 100*time.Millisecond, "pause of a connection after an echo")
	every := flags.Duration("report", 500*time.Millisecond, "time between two lines")
	span := flags.Duration("for", 10*time.Second, "how long")
	flags.Parse(arguments)
	targets := flags.Args()
	if len(targets) == 0 || *flows < 1 || *every <= 0 {
		return fail("talk: name HOST:PORT targets, at least 1 of --flows and a positive --report")
	}
	talkers := make([]*talker, *flows)
	var connecting sync.WaitGroup
	for number := range talkers {
		talkers[number] = &talker{}
		connecting.Add(1)
		go talkers[number].run(targets[number%len(targets)], *interval, sync.OnceFunc(connecting.Done))
	}
	connecting.Wait()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	tick, end, began := time.NewTicker(*every), time.After(*span), time.Now()
	for {
		select {
		case now := <-tick.C:
			print(report(talkers, began))
			began = now
		case <-end:
			print(report(talkers, began))
			return 0
		case <-stop:
			print(report(talkers, began))
			return 0
		}
	}
}
