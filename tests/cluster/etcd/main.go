// One etcd member for the tests: it keeps its data where it is told, speaks plain HTTP on loopback and ends when its
// stdin closes, so that a killed test leaves no server behind.
package main

import (
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/server/v3/embed"
)

// How long a fresh member may take before its start counts as failed; it needs some 50 ms.
const patience = 60 * time.Second

func main() {
	folder := flag.String("data-dir", "", "an empty folder")
	client := flag.String("client-url", "", "where clients reach it, http://127.0.0.1:PORT")
	peer := flag.String("peer-url", "", "the peer address it must have and nobody uses")
	show := flag.Bool("version", false, "print the version and end")
	flag.Parse()
	if *show {
		fmt.Println(version.Version)
		return
	}
	if err := serve(*folder, *client, *peer); err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		os.Exit(1)
	}
}

func serve(folder, client, peer string) error {
	clients, err := url.Parse(client)
	if err != nil {
		return err
	}
	peers, err := url.Parse(peer)
	if err != nil {
		return err
	}
	config := embed.NewConfig()
	config.Name, config.Dir, config.LogLevel = "tests", folder, "error"
	// Nothing here outlives the test, so nothing has to reach a disk.
	config.UnsafeNoFsync = true
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clients}, []url.URL{*clients}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peers}, []url.URL{*peers}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	member, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer member.Close()
	select {
	case <-member.Server.ReadyNotify():
	case err := <-member.Err():
		return err
	case <-time.After(patience):
		return fmt.Errorf("not ready after %s", patience)
	}
	closed := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(closed)
		// A client that keeps a watch open must not keep the server.
		time.AfterFunc(5*time.Second, func() { os.Exit(1) })
	}()
	select {
	case <-closed:
		return nil
	case err := <-member.Err():
		return err
	}
}
