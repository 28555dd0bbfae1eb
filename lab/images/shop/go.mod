module airmesh/lab/shop

go 1.26.0
