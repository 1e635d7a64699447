package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type options struct {
	Name         string `json:"name"`
	Compresses   bool   `json:"compresses"`
	AgeMs        int    `json:"age_ms"`
	PingsApartMs int    `json:"pings_apart_ms"`
}

// journal is what has been seen of one id.
type journal struct {
	At        []float64 `json:"at"`
	Cancelled int       `json:"cancelled"`
}

type peer struct {
	options
	begun time.Time
	lock  sync.Mutex
	seen  map[string]*journal
}

func (p *peer) of(id string) *journal {
	if p.seen[id] == nil {
		p.seen[id] = &journal{At: []float64{}}
	}
	return p.seen[id]
}

func (p *peer) begin(a *ask) int {
	p.lock.Lock()
	defer p.lock.Unlock()
	j := p.of(a.ID)
	j.At = append(j.At, float64(time.Since(p.begun).Microseconds())/1000)
	return len(j.At)
}

// wait waits as long as it is asked to, or until nobody waits for the answer, which is an error.
func (p *peer) wait(ctx context.Context, a *ask) error {
	if a.WaitsMs == 0 {
		return nil
	}
	select {
	case <-time.After(time.Duration(a.WaitsMs) * time.Millisecond):
		return nil
	case <-ctx.Done():
		p.lock.Lock()
		defer p.lock.Unlock()
		p.of(a.ID).Cancelled++
		return status.FromContextError(ctx.Err()).Err()
	}
}

func (p *peer) answer(ctx context.Context, request *wrapperspb.StringValue) (string, error) {
	var a ask
	if err := json.Unmarshal([]byte(request.Value), &a); err != nil {
		return "", err
	}
	told := answer{Name: p.Name, Attempt: p.begin(&a), Padding: strings.Repeat("x", a.Bytes)}
	if deadline, ok := ctx.Deadline(); ok {
		remaining := float64(time.Until(deadline).Microseconds()) / 1000
		told.RemainingMs = &remaining
	}
	if values := metadata.ValueFromIncomingContext(ctx, "grpc-previous-rpc-attempts"); len(values) > 0 {
		told.Previous, _ = strconv.Atoi(values[0])
	}
	if p.Compresses {
		// Refused where the client does not understand it, and then the answer goes out as it is.
		_ = grpc.SetSendCompressor(ctx, "gzip")
	}
	if err := p.wait(ctx, &a); err != nil {
		return "", err
	}
	if told.Attempt <= a.Fails {
		if a.Pushback != nil {
			_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", *a.Pushback))
		}
		return "", status.Error(codes.Unavailable, "not now")
	}
	text, err := json.Marshal(told)
	return string(text), err
}

func (p *peer) look(_ context.Context, request *wrapperspb.StringValue) (string, error) {
	p.lock.Lock()
	defer p.lock.Unlock()
	text, err := json.Marshal(p.of(request.Value))
	return string(text), err
}

func count(server any, stream grpc.ServerStream) error {
	p, request, a := server.(*peer), new(wrapperspb.StringValue), ask{}
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(request.Value), &a); err != nil {
		return err
	}
	p.begin(&a)
	if p.Compresses {
		if err := grpc.SetSendCompressor(stream.Context(), "gzip"); err != nil {
			return err
		}
	}
	for number := range a.Counts {
		text := fmt.Sprintf("%*d", a.Bytes, number)
		if err := stream.SendMsg(wrapperspb.String(text)); err != nil {
			return err
		}
	}
	return p.wait(stream.Context(), &a)
}

// unary makes a method of a function from text to text.
func unary(
	name string,
	handle func(*peer, context.Context, *wrapperspb.StringValue) (string, error),
) grpc.MethodDesc {
	handler := func(
		server any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor,
	) (any, error) {
		request := new(wrapperspb.StringValue)
		if err := decode(request); err != nil {
			return nil, err
		}
		text, err := handle(server.(*peer), ctx, request)
		if err != nil {
			return nil, err
		}
		return wrapperspb.String(text), nil
	}
	return grpc.MethodDesc{MethodName: name, Handler: handler}
}

func serve(text string) error {
	p := &peer{begun: time.Now(), seen: map[string]*journal{}}
	if err := json.Unmarshal([]byte(text), &p.options); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var settings []grpc.ServerOption
	if p.AgeMs > 0 {
		age := time.Duration(p.AgeMs) * time.Millisecond
		settings = append(settings, grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: age, MaxConnectionAgeGrace: 10 * time.Second,
		}))
	}
	if p.PingsApartMs > 0 {
		apart := time.Duration(p.PingsApartMs) * time.Millisecond
		policy := keepalive.EnforcementPolicy{MinTime: apart}
		settings = append(settings, grpc.KeepaliveEnforcementPolicy(policy))
	}
	server := grpc.NewServer(settings...)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			unary("Get", (*peer).answer), unary("Put", (*peer).answer), unary("Look", (*peer).look),
		},
		Streams: []grpc.StreamDesc{counting},
	}, p)
	go func() {
		input := bufio.NewScanner(os.Stdin)
		if input.Scan() && input.Text() == "stop" {
			server.GracefulStop()
			return
		}
		os.Exit(0)
	}()
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	if err := server.Serve(listener); err != nil {
		return err
	}
	// Serve returns as soon as nobody is let in; what is under way goes on.
	server.GracefulStop()
	fmt.Println("stopped")
	return nil
}
