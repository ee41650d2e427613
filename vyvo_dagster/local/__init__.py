"""The embedded stack for one machine: real servers from wheels, and `vyvo up` over them."""
