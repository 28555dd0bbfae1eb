// Command consumer hears which pods come and go: consumer nats://127.0.0.1:4222 cli.seed
package main

import (
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/vmihailenco/msgpack/v5"
)

// EndpointUp has the fields that this consumer wants; docs/asyncapi.json names all of them. Others are passed over.
type EndpointUp struct {
	Namespace string   `msgpack:"namespace"`
	Pod       string   `msgpack:"pod"`
	Addresses []string `msgpack:"addresses"`
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: consumer URL SEED-FILE")
	}
	key, err := nats.NkeyOptionFromSeed(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	bus, err := nats.Connect(os.Args[1], key, nats.CustomInboxPrefix("_INBOX.cli"))
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()
	events := make(chan *nats.Msg, 4096)
	if _, err := bus.ChanSubscribe("airmesh.v1.events.dataplane.*.*", events); err != nil {
		log.Fatal(err)
	}
	if err := bus.Flush(); err != nil {
		log.Fatal(err)
	}
	log.Print("listening")
	for message := range events {
		tokens := strings.Split(message.Subject, ".")
		what, node := tokens[len(tokens)-2], tokens[len(tokens)-1]
		var body EndpointUp
		if err := msgpack.Unmarshal(message.Data, &body); err != nil {
			log.Printf("%s cannot be read: %v", message.Subject, err)
			continue
		}
		fmt.Println(what, node, body.Namespace, body.Pod, strings.Join(body.Addresses, " "), message.Header.Get("traceparent"))
	}
}
