// Vault's server and command line as its module makes them, with the engines that come with it. A test tool (BUSL): it is started
// as a program of its own and linked to nothing of Sidegate's.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() { os.Exit(command.Run(os.Args[1:])) }
