module copepod.dev/examples/go-http

go 1.21
