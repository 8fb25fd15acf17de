/* Packets of our own where connection tracking cannot be asked, and the source that two translations put in. */
#include <arpa/inet.h>
#include <unistd.h>

#include "harness.h"
