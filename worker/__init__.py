"""The process around the engines of one host: takes requests off NATS and HTTP and answers them."""
