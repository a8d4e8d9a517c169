/* libobjc2 has a header of this name and GCC's runtime has none; libBlocksRuntime has the same
 * entry points. */
#include <Block.h>
