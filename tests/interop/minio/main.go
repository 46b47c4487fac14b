// MinIO's server as its module makes it: its STS verifies web identity tokens, by the provider's discovery and keys. A test
// tool (AGPL): it is started as a program of its own and linked to nothing of Sidegate's.
package main

import (
	"os"

	minio "github.com/minio/minio/cmd"
)

func main() { minio.Main(os.Args) }
