package main

import (
	"encoding/binary"
	"flag"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Gap is printed when a silence longer than --report ends: how long no echo came, and when it began (unix ms).
type Gap struct {
	Gap   float64 `json:"gap_ms"`
	Began int64   `json:"began_unix_ms"`
}

// Summary is the last line of `shop beat`. Longest counts silences between two echoes, the one before the first
// echo and the one that lasts at the end as well.
type Summary struct {
	Target   string  `json:"target"`
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	Longest  float64 `json:"longest_gap_ms"`
	Began    int64   `json:"longest_began_unix_ms"`
	Seconds  float64 `json:"seconds"`
}

type silenceMeter struct {
	last    time.Time
	longest time.Duration
	began   time.Time
	report  time.Duration
}

// heard notes an echo (or the end) and prints the silence before it when it was a long one.
func (m *silenceMeter) heard(now time.Time, interval time.Duration) {
	silence := now.Sub(m.last) - interval // two beats are one interval apart even when nothing is lost
	if silence > m.longest {
		m.longest, m.began = silence, m.last
	}
	if silence > m.report {
		print(Gap{Gap: float64(silence.Microseconds()) / 1000, Began: m.last.UnixMilli()})
	}
	m.last = now
}

// beat sends a numbered datagram every interval and listens for echoes until the time is up or TERM comes.
// The socket is connected once: what is measured is the path, not the resolver. Errors such as "connection
// refused" are beats that did not come back.
func beat(arguments []string) int {
	flags := flag.NewFlagSet("beat", flag.ExitOnError)
	interval := flags.Duration("interval", 5*time.Millisecond, "time between two beats")
	span := flags.Duration("for", 10*time.Second, "how long")
	report := flags.Duration("report", 100*time.Millisecond, "print silences longer than this when they end")
	flags.Parse(arguments)
	if flags.NArg() != 1 || *interval <= 0 {
		return fail("beat: name one HOST:PORT and a positive --interval")
	}
	socket, err := net.Dial("udp", flags.Arg(0))
	if err != nil {
		return fail("beat: %v", err)
	}
	echoes := make(chan time.Time, 1024)
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, err := socket.Read(buffer)
			if err == nil && n == 8 {
				echoes <- time.Now()
			} else if err != nil {
				time.Sleep(time.Millisecond) // a refused beat reports at once; do not spin on it
			}
		}
	}()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	tick, end, began := time.NewTicker(*interval), time.After(*span), time.Now()
	meter := silenceMeter{last: began, began: began, report: *report}
	summary := Summary{Target: flags.Arg(0)}
	for running := true; running; {
		select {
		case <-tick.C:
			summary.Sent++
			socket.Write(binary.BigEndian.AppendUint64(nil, uint64(summary.Sent)))
		case at := <-echoes:
			summary.Received++
			meter.heard(at, *interval)
		case <-end:
			running = false
		case <-stop:
			running = false
		}
	}
	meter.heard(time.Now(), *interval)
	summary.Longest = float64(meter.longest.Microseconds()) / 1000
	summary.Began, summary.Seconds = meter.began.UnixMilli(), time.Since(began).Seconds()
	print(summary)
	return 0
}
