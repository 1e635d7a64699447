package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Put has no policy: it must not be done twice.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "interop.v1.Peer", "method": "Get"}],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.01s",
      "maxBackoff": "0.02s",
      "backoffMultiplier": 1,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// order is a line of the standard input.
type order struct {
	Do        string          `json:"do"`
	Method    string          `json:"method"`
	Ask       json.RawMessage `json:"ask"`
	TimeoutMs int             `json:"timeout_ms"`
	CancelMs  int             `json:"cancel_ms"`
	Tasks     int             `json:"tasks"`
}

// outcome is what became of a call.
type outcome struct {
	Answer  *answer `json:"answer,omitempty"`
	Code    uint32  `json:"code,omitempty"`
	Message string  `json:"message,omitempty"`
	TookMs  float64 `json:"took_ms"`
}

func call(connection *grpc.ClientConn, o *order) outcome {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if o.TimeoutMs > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(o.TimeoutMs)*time.Millisecond)
		defer cancel()
	}
	if o.CancelMs > 0 {
		time.AfterFunc(time.Duration(o.CancelMs)*time.Millisecond, cancel)
	}
	begun, reply := time.Now(), new(wrapperspb.StringValue)
	path := "/" + service + "/" + o.Method
	err := connection.Invoke(ctx, path, wrapperspb.String(string(o.Ask)), reply)
	took := float64(time.Since(begun).Microseconds()) / 1000
	if err == nil {
		told := new(answer)
		if err = json.Unmarshal([]byte(reply.Value), told); err == nil {
			return outcome{Answer: told, TookMs: took}
		}
	}
	failed := status.Convert(err)
	return outcome{Code: uint32(failed.Code()), Message: failed.Message(), TookMs: took}
}

// load is calls that go on until they are stopped.
type load struct {
	ended    atomic.Bool
	tasks    sync.WaitGroup
	lock     sync.Mutex
	answered map[string]int
	failures []string
}

func begin(connection *grpc.ClientConn, o order) *load {
	l := &load{answered: map[string]int{}, failures: []string{}}
	for range o.Tasks {
		l.tasks.Add(1)
		go func() {
			defer l.tasks.Done()
			for !l.ended.Load() {
				l.note(call(connection, &o))
			}
		}()
	}
	return l
}

func (l *load) note(o outcome) {
	l.lock.Lock()
	defer l.lock.Unlock()
	if o.Answer != nil {
		l.answered[o.Answer.Name]++
	} else {
		l.failures = append(l.failures, fmt.Sprintf("%d: %s", o.Code, o.Message))
	}
}

func (l *load) report() ([]byte, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	failures := l.failures[:min(len(l.failures), 10)]
	return json.Marshal(map[string]any{"answered": l.answered, "failures": failures})
}

func callers(addresses []string) error {
	builder := manual.NewBuilderWithScheme("peers")
	state := resolver.State{}
	for _, address := range addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	builder.InitialState(state)
	// What stands behind the slashes is the authority of the requests.
	connection, err := grpc.NewClient("peers:///interop", grpc.WithResolvers(builder),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig))
	if err != nil {
		return err
	}
	var calls *load
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		var o order
		if err := json.Unmarshal(input.Bytes(), &o); err != nil {
			return err
		}
		var text []byte
		switch o.Do {
		case "call":
			text, err = json.Marshal(call(connection, &o))
		case "load":
			calls = begin(connection, o)
			text, err = calls.report()
		case "look":
			text, err = calls.report()
		case "stop":
			calls.ended.Store(true)
			calls.tasks.Wait()
			text, err = calls.report()
		}
		if err != nil {
			return err
		}
		fmt.Println(string(text))
	}
	return input.Err()
}
