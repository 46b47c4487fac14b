// Kubernetes' programs in one binary, chosen by the first argument. A server ends when its stdin closes, so that a
// killed test leaves none behind; kubectl reads its stdin as it likes.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	_ "time/tzdata"

	"github.com/spf13/cobra"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// What a server gets to end in order: an API server with watchers, or without its etcd, would wait far longer.
const grace = 5 * time.Second

// The command of a program, or nil for a name that is none.
func program(name string) *cobra.Command {
	switch name {
	case "kube-apiserver":
		return apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		return controllers.NewControllerManagerCommand()
	case "kube-scheduler":
		return scheduler.NewSchedulerCommand()
	case "kubelet":
		return made(kubelet.NewKubeletCommand)
	case "kube-proxy":
		return proxy.NewProxyCommand()
	case "kubectl":
		return kubectl.NewDefaultKubectlCommand()
	}
	return nil
}

// The kubelet's constructor takes a context from 1.34 on.
func made(constructor any) *cobra.Command {
	switch constructor := constructor.(type) {
	case func() *cobra.Command:
		return constructor()
	case func(context.Context) *cobra.Command:
		return constructor(context.Background())
	}
	return nil
}

func endWithStdin() {
	io.Copy(io.Discard, os.Stdin)
	time.AfterFunc(grace, func() { os.Exit(1) })
	syscall.Kill(os.Getpid(), syscall.SIGTERM)
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "kube: name a program")
		os.Exit(64)
	}
	// The commands read os.Args when they are made, kubectl for its plugins.
	os.Args = os.Args[1:]
	command := program(os.Args[0])
	if command == nil {
		fmt.Fprintf(os.Stderr, "kube: %s is none of its programs\n", os.Args[0])
		os.Exit(64)
	}
	if os.Args[0] != "kubectl" {
		go endWithStdin()
	}
	os.Exit(cli.Run(command))
}
