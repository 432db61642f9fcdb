// An HTTP server in Go. net.Listen is a network within the program on wasip1, so it serves on the socket of its container's first declared
// port, which it is given. With arguments it is a command: it shows what it sees, and ends.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

func main() {
	if len(os.Args) > 1 {
		command(os.Args[1:])
		return
	}
	listener, err := given()
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from %s on %s %s\n", runtime.Version(), runtime.GOOS, r.URL.Path)
	})
	http.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(80 * time.Millisecond)
		fmt.Fprintln(w, "slow, but not in the way")
	})
	log.Print("serving")
	log.Fatal(http.Serve(listener, nil))
}

// The first of COPEPOD_LISTEN_FDS, which is name=number,name=number.
func given() (net.Listener, error) {
	first, _, _ := strings.Cut(os.Getenv("COPEPOD_LISTEN_FDS"), ",")
	name, number, _ := strings.Cut(first, "=")
	fd, err := strconv.Atoi(number)
	if err != nil {
		return nil, fmt.Errorf("no socket was given: declare a port of the container")
	}
	return net.FileListener(os.NewFile(uintptr(fd), name))
}

func command(args []string) {
	switch args[0] {
	case "exit":
		code, _ := strconv.Atoi(args[1])
		os.Exit(code)
	case "cat":
		content, err := os.ReadFile(args[1])
		if err != nil {
			log.Fatal(err)
		}
		os.Stdout.Write(content)
	case "fake":
		// What many programs do, and nobody outside can reach.
		listener, err := net.Listen("tcp", ":8080")
		if err != nil {
			log.Fatal(err)
		}
		log.Fatal(http.Serve(listener, nil))
	default:
		fmt.Println("args", strings.Join(args, " "))
		fmt.Println("HOME", os.Getenv("HOME"))
	}
}
