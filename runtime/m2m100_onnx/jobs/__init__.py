"""Many machines: translating as a job of Ray Data or Spark, and the server as one of Ray Serve."""
