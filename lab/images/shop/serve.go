package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// Self is what a server answers with. Pod and Node come from the environment (POD_NAME, NODE_NAME, filled by
// the downward API); the host's name stands in for a pod that does not set them.
type Self struct {
	Pod    string `json:"pod"`
	Node   string `json:"node"`
	Client string `json:"client"`
	Server string `json:"server"`
	Path   string `json:"path,omitempty"`
	Echo   string `json:"echo,omitempty"`
}

func self(client, server string) Self {
	pod := os.Getenv("POD_NAME")
	if pod == "" {
		pod, _ = os.Hostname()
	}
	return Self{Pod: pod, Node: os.Getenv("NODE_NAME"), Client: client, Server: server}
}

// A connection that says nothing for this long is closed: a client that vanished leaves no goroutine behind.
const silence = 60 * time.Second

func serveHTTP(port string, failed chan<- error) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		answer := self(r.RemoteAddr, local.String())
		answer.Path = r.URL.Path
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(answer)
	})
	server := &http.Server{Addr: ":" + port, Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: silence}
	failed <- server.ListenAndServe()
}

// serveTCP greets with one line of JSON, then echoes what it is sent.
func serveTCP(port string, failed chan<- error) {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		failed <- err
		return
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			failed <- err
			return
		}
		go func() {
			defer connection.Close()
			greeting, _ := json.Marshal(self(connection.RemoteAddr().String(), connection.LocalAddr().String()))
			connection.Write(append(greeting, '\n'))
			buffer := make([]byte, 16384)
			for {
				connection.SetDeadline(time.Now().Add(silence))
				n, err := connection.Read(buffer)
				if n > 0 {
					if _, err := connection.Write(buffer[:n]); err != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		}()
	}
}

// serveUDP sends each datagram back as it came; one that begins with "who" is answered with Self.
func serveUDP(port string, failed chan<- error) {
	socket, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		failed <- err
		return
	}
	buffer := make([]byte, 65536)
	for {
		n, client, err := socket.ReadFrom(buffer)
		if err != nil {
			failed <- err
			return
		}
		answer := buffer[:n]
		if strings.HasPrefix(string(answer), "who") {
			answer, _ = json.Marshal(self(client.String(), socket.LocalAddr().String()))
		}
		socket.WriteTo(answer, client) // a client that went away is no reason to stop
	}
}

func serve(arguments []string) int {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	kinds := map[string]struct {
		ports *string
		run   func(string, chan<- error)
	}{
		"http": {flags.String("http", os.Getenv("PORT"), "ports, separated by commas, for HTTP (8080 when no port is named at all)"), serveHTTP},
		"tcp":  {flags.String("tcp", "", "ports for a TCP echo with a greeting"), serveTCP},
		"udp":  {flags.String("udp", "", "ports for a UDP echo"), serveUDP},
	}
	flags.Parse(arguments)
	if *kinds["http"].ports+*kinds["tcp"].ports+*kinds["udp"].ports == "" {
		*kinds["http"].ports = "8080"
	}
	failed := make(chan error)
	started := 0
	for _, kind := range kinds {
		for _, port := range strings.Split(*kind.ports, ",") {
			if port = strings.TrimSpace(port); port != "" {
				go kind.run(port, failed)
				started++
			}
		}
	}
	if started == 0 {
		return fail("serve: name at least one port: --http 8080, --tcp 9000 or --udp 9000")
	}
	log.SetOutput(io.Discard)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	select {
	case err := <-failed:
		return fail("serve: %v", err)
	case <-stop:
		return 0
	}
}
