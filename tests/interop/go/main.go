// A server and a client on grpc-go of the contract interop.v1.Peer: see tests/peers/contract.rs.
//
// peer serve OPTIONS prints its port, leaves in order when it reads "stop", and ends at once when its
// standard input ends. peer call ADDRESS... does what each line of its standard input asks, says in one
// line what became of it, and ends with its input.
package main

import (
	"fmt"
	"os"

	"google.golang.org/grpc"
)

func main() {
	var err error
	if os.Args[1] == "serve" {
		err = serve(os.Args[2])
	} else {
		err = callers(os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const service = "interop.v1.Peer"

// ask is what a call says about how it is to be answered.
type ask struct {
	ID       string  `json:"id"`
	Fails    int     `json:"fails"`
	Pushback *string `json:"pushback"`
	WaitsMs  int     `json:"waits_ms"`
	Bytes    int     `json:"bytes"`
	Counts   int     `json:"counts"`
}

// answer is what a server tells of a call.
type answer struct {
	Name        string   `json:"name"`
	Attempt     int      `json:"attempt"`
	Previous    int      `json:"previous"`
	RemainingMs *float64 `json:"remaining_ms"`
	Padding     string   `json:"padding"`
}

var counting = grpc.StreamDesc{StreamName: "Count", Handler: count, ServerStreams: true}
