// Command kubernetes is an API server of Kubernetes with its etcd inside: what a cluster says, without
// a cluster. It answers over HTTPS, and passes on what comes to a port without TLS, so that tests can
// read along and write without certificates.
//
//	kubernetes DATA CERTIFICATES ADDRESS PLAIN SECURE CLIENT PEER
package main

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	if len(os.Args) != 8 {
		end(fmt.Errorf("it takes a folder for its data, the one of the certificates, an address to " +
			"listen at, a port for each protocol, and two ports for etcd"))
	}
	data, certificates, address, plain, secure := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	etcd := at("http", os.Args[6])
	if err := keep(filepath.Join(data, "etcd"), etcd, at("http", os.Args[7])); err != nil {
		end(err)
	}
	go func() { end(pass(address+":"+plain, at("https", secure))) }()
	certificate := filepath.Join(certificates, "server.pem")
	key := filepath.Join(certificates, "server.key")
	server := app.NewAPIServerCommand()
	server.SetArgs([]string{
		"--etcd-servers=" + etcd.String(),
		"--bind-address=" + address, "--advertise-address=127.0.0.1", "--secure-port=" + secure,
		"--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.0.0.0/24",
		"--tls-cert-file=" + certificate, "--tls-private-key-file=" + key,
		"--authorization-mode=RBAC", "--token-auth-file=" + filepath.Join(data, "tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + certificate, "--service-account-signing-key-file=" + key,
	})
	end(server.Execute())
}

// keep starts etcd.
func keep(data string, client, peer url.URL) error {
	config := embed.NewConfig()
	config.Dir = data
	config.LogLevel = "warn"
	config.LCUrls, config.ACUrls = []url.URL{client}, []url.URL{client}
	config.LPUrls, config.APUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	<-etcd.Server.ReadyNotify()
	return nil
}

// pass passes everything on, watches as they come.
func pass(address string, to url.URL) error {
	proxy := httputil.NewSingleHostReverseProxy(&to)
	proxy.FlushInterval = -1
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	return http.ListenAndServe(address, proxy)
}

func at(scheme, port string) url.URL {
	return url.URL{Scheme: scheme, Host: "127.0.0.1:" + port}
}

func end(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
