"""What tests need and users may: disks, hosts and links in memory, with faults on demand."""
