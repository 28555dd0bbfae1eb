// Command shop is the pods' program in a lab: a server that says who it is, and a client that measures.
//
//	shop serve --http 8080 --tcp 9000 --udp 9000   answer with the pod's name, node and the client's address
//	shop probe --timeout 1s tcp://10.0.0.1:80 …    connect to many targets at once, one JSON line each
//	shop beat --interval 5ms --for 10s HOST:PORT   a steady stream of UDP echoes, and the longest silence
//	shop talk --flows 64 --for 10s HOST:PORT …     TCP connections that go on echoing, and how many do
//
// It uses Go's standard library alone and links statically, so an image can hold it and nothing else.
// Every line it prints is one JSON object; times are in milliseconds.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
)

// A line is printed whole even when many goroutines finish at once.
var printing sync.Mutex

func print(value any) {
	line, err := json.Marshal(value)
	if err != nil {
		line = []byte(fmt.Sprintf(`{"error":%q}`, err.Error()))
	}
	printing.Lock()
	defer printing.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

func fail(format string, values ...any) int {
	fmt.Fprintf(os.Stderr, "shop: "+format+"\n", values...)
	return 2
}

func main() {
	usage := "usage: shop serve|probe|beat|talk [flags] [targets]"
	if len(os.Args) < 2 {
		os.Exit(fail("%s", usage))
	}
	commands := map[string]func([]string) int{"serve": serve, "probe": probe, "beat": beat, "talk": talk}
	command, known := commands[os.Args[1]]
	if !known {
		os.Exit(fail("no command %q; %s", os.Args[1], usage))
	}
	os.Exit(command(os.Args[2:]))
}
